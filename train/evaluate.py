"""How often, and how high up, a model lists the click that comes next.

The protocol is one for every model: the next item of every prefix of every session, against the
whole catalogue, nothing sampled. Sessions of like length are stepped side by side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64

from train.model import GRU4Rec
from train.sessions import Sessions

CUTOFFS = (1, 5, 10, 20)
PROTOCOL = (
    "next item, every prefix of every session, whole catalogue ranked, nothing sampled, "
    "ties count against the model, repeats allowed; novel: targets not yet in the session, "
    "same lists; clicks on items unseen in training dropped, then sessions of one click"
)

# Scores of one step, at 4 bytes: 32 MB keeps 1 million items in bounds and 43,097 items at 194
# rows, where the matrix product is at its full speed.
_SCORES_PER_STEP = 8_388_608


@dataclass(frozen=True, slots=True)
class SessionBatch:
    """B sessions side by side, the longest first."""

    item_index: Int64[np.ndarray, "B T"]
    """Click t of session b; zeros behind a session's end, never to be read."""
    lengths: Int64[np.ndarray, "B"]
    timestamp_ms: Int64[np.ndarray, "B T"]
    """When click t was made; of the prefix alone a predictor may know it."""
    context: Int32[np.ndarray, "B T F"]
    """Its number in every context field; likewise."""

    def steps(self) -> Iterator[Int64[np.ndarray, "b t"]]:
        """Prefixes of 1, 2, ... clicks of the sessions that go on after them.

        Those are the first b rows, b falling with t.
        """
        for t in range(1, int(self.lengths.max(initial=0))):
            yield self.item_index[: np.count_nonzero(self.lengths > t), :t]


@runtime_checkable  # so that the tests' checks of argument types can look at one
class Predictor(Protocol):
    """What the evaluator needs of a model or a baseline."""

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """Scores of the whole catalogue as the next click, for each of `batch.steps()`.

        Row b must be a function of that prefix alone. The evaluator does not change the array.
        """
        ...


@dataclass(frozen=True, slots=True)
class GRUPredictor:
    """A GRU under the evaluator: the hidden state is carried from step to step."""

    model: GRU4Rec

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """Scores of the whole catalogue after each click."""
        hidden = self.model.initial_hidden(len(batch.lengths))
        for prefix in batch.steps():
            with torch.inference_mode():
                clicks = torch.from_numpy(prefix[:, -1].copy())
                hidden = self.model.encode(clicks, hidden[:, : len(prefix)])
                scores = self.model.scores(hidden[-1])
            yield scores.numpy()


@dataclass(frozen=True, slots=True)
class Ranks:
    """Every prediction of an evaluation, one row each, in no promised order."""

    session: Int64[np.ndarray, "P"]
    """Row of the session in the evaluated sessions."""
    position: Int64[np.ndarray, "P"]
    """Clicks of the session that were known."""
    rank: Int64[np.ndarray, "P"]
    """Place of the target in the list, from 1; among equal scores the last."""
    novel: Bool[np.ndarray, "P"]
    """The target is not among the known clicks."""


def rank_targets(predictor: Predictor, sessions: Sessions, n_items: int) -> Ranks:
    """The rank of the next click after every prefix of every session."""
    rows: list[tuple[np.ndarray, ...]] = []
    for row, batch in session_batches(sessions, max(1, _SCORES_PER_STEP // n_items)):
        steps = zip(batch.steps(), predictor.predict(batch), strict=True)
        for prefix, scores in steps:
            n_active, position = prefix.shape
            target = batch.item_index[:n_active, position]
            rows.append(
                (
                    row[:n_active],
                    np.full(n_active, position),
                    conservative_rank(scores, target),
                    (prefix != target[:, None]).all(axis=1),
                )
            )
    if not rows:
        nothing = np.empty(0, dtype=np.int64)
        return Ranks(nothing, nothing, nothing, nothing.astype(bool))
    session, position, rank, novel = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Ranks(session, position, rank, novel)


def session_batches(
    sessions: Sessions, batch_size: int
) -> Iterator[tuple[Int64[np.ndarray, "B"], SessionBatch]]:
    """All sessions of two clicks or more, at most `batch_size` at a time, with their rows."""
    lengths = sessions.lengths
    longest_first = np.argsort(-lengths, kind="stable")
    longest_first = longest_first[: np.count_nonzero(lengths > 1)]
    for first in range(0, len(longest_first), batch_size):
        row = longest_first[first : first + batch_size]
        column = np.arange(lengths[row[0]])
        inside = column < lengths[row, None]
        click = np.where(inside, sessions.start[row, None] + column, 0)
        yield (
            row,
            SessionBatch(
                item_index=np.where(inside, sessions.item_index[click], 0),
                lengths=lengths[row],
                timestamp_ms=np.where(inside, sessions.timestamp_ms[click], 0),
                context=np.where(inside[:, :, None], sessions.context[click], 0),
            ),
        )


def conservative_rank(
    scores: Float[np.ndarray, "B N"], target: Int64[np.ndarray, "B"]
) -> Int64[np.ndarray, "B"]:
    """Place of each row's target from 1, behind every item that does not score below it.

    A score that is not a number is never below and never above: it counts against the model
    on either side.
    """
    target_score = scores[np.arange(len(target)), target]
    # Row by row the comparison's result stays in the cache; one whole matrix is 2 x as slow.
    below = [np.count_nonzero(row < score) for row, score in zip(scores, target_score, strict=True)]
    return np.asarray(scores.shape[1] - np.array(below, dtype=np.int64))


def figures(ranks: Ranks) -> dict[str, float]:
    """Recall@K and MRR@K over all predictions, and over the novel ones under `novel_`."""
    return _figures("", ranks.rank) | _figures("novel_", ranks.rank[ranks.novel])


def _figures(prefix: str, rank: Int64[np.ndarray, "P"]) -> dict[str, float]:
    result: dict[str, float] = {f"{prefix}predictions": float(len(rank))}
    n_predictions = max(1, len(rank))
    for k in CUTOFFS:
        hit = rank[rank <= k]
        result[f"{prefix}recall_at_{k}"] = len(hit) / n_predictions
        result[f"{prefix}mrr_at_{k}"] = float((1.0 / hit).sum()) / n_predictions
    return result
