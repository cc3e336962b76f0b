"""The model's work for one micro-batch: steps in waves, then one rank call for all clicks.

The k-th steps of all sessions go through ``encode`` in one call; ranking costs 60 times a step, so
only the steps that publish a list are ranked, together, at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from jaxtyping import Float32, Int32

from stream.model.scorer import Scorer


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model computed, and how long each graph took.

    state: of all sessions after their last step. top_index, top_score: a row a ranked step (R).
    """

    state: Float32[np.ndarray, "sessions S"]
    top_index: Int32[np.ndarray, "R K"]
    top_score: Float32[np.ndarray, "R K"]
    encode_seconds: float
    rank_seconds: float


@dataclass(slots=True)
class _Wave:
    """The k-th step of every session that has one; rank_row -1: nobody asked for a list.

    contexts: the fields' numbers of one step behind those of the other.
    """

    rows: list[int] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    rank_rows: list[int] = field(default_factory=list)


class Waves:
    """Collects the steps of a batch while it is planned, then runs them."""

    def __init__(self) -> None:
        self._waves: list[_Wave] = []
        self._stored: list[Float32[np.ndarray, S] | None] = []
        self._depth: list[int] = []
        self._n_ranks = 0

    def add_session(self, state: Float32[np.ndarray, "S"] | None) -> int:
        """Return the row of a session that begins at ``state``; None is all zeros."""
        self._stored.append(state)
        self._depth.append(0)
        return len(self._stored) - 1

    def step(self, row: int, item_index: int, context: Sequence[int], *, ranked: bool) -> int:
        """Advance a session by a click, its item and its number in every context field.

        Returns the row of its list, or -1 if not ``ranked``.
        """
        depth = self._depth[row]
        self._depth[row] = depth + 1
        if depth == len(self._waves):
            self._waves.append(_Wave())
        wave = self._waves[depth]
        wave.rows.append(row)
        wave.items.append(item_index)
        wave.contexts.extend(context)
        rank_row = -1
        if ranked:
            rank_row = self._n_ranks
            self._n_ranks += 1
        wave.rank_rows.append(rank_row)
        return rank_row

    def score(self, scorer: Scorer) -> Scores:
        """Run everything. Blocks; the interpreter's lock is released inside ONNX Runtime."""
        started = perf_counter()
        state = np.zeros((len(self._stored), scorer.state_size), np.float32)
        for row, stored in enumerate(self._stored):
            if stored is not None:
                state[row] = stored
        queries = np.empty((self._n_ranks, scorer.query_size), np.float32)
        for wave in self._waves:
            rows = np.array(wave.rows)
            context = np.array(wave.contexts, np.int32).reshape(len(rows), -1)
            items = np.array(wave.items, np.int64)
            query, state[rows] = scorer.encode(items, context, state[rows])
            rank_rows = np.array(wave.rank_rows)
            ranked = rank_rows >= 0
            queries[rank_rows[ranked]] = query[ranked]
        encoded = perf_counter()
        if self._n_ranks:
            top_index, top_score = scorer.rank(queries)
        else:
            top_index = np.empty((0, scorer.n_recommendations), np.int32)
            top_score = np.empty((0, scorer.n_recommendations), np.float32)
        return Scores(state, top_index, top_score, encoded - started, perf_counter() - encoded)
