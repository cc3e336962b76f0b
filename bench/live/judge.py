"""How good the published lists were, and how old the view was that made them."""

from collections import Counter
from collections.abc import Collection
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Bool, Int64

from bench.live.clicks import Stream
from stream.counts import QUALITY_K, rank_in_list

LONGEST_PREFIX = 5
"""Longer ones are told together."""
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

_NO_VIEW = np.iinfo(np.int64).min


class Listed(msgspec.Struct):
    """One place of a list, as any consumer may read it."""

    item_id: str
    score: float
    source: str | None = None


class Answer(msgspec.Struct):
    """A recommendation's value, as any consumer may read it."""

    items: list[Listed]
    outcome: str
    view_ms: int | None = None


decode_answer = msgspec.json.Decoder(Answer).decode


class Judge:
    """Looks where each session's next click stands in the list that was published before it.

    known: the items of the network.
    """

    def __init__(self, stream: Stream, known: Collection[str]) -> None:
        self._stream, self._known = stream, known
        self._rank = np.zeros(len(stream), np.int64)
        self._outcome = np.full(len(stream), "", dtype=object)
        self._view_ms = np.full(len(stream), _NO_VIEW, np.int64)
        self._sources: Counter[str] = Counter()

    def add(self, n: int, answer: Answer) -> None:
        """Take the list that answered click n."""
        then = self._stream.next_click[n]
        if then < 0:
            return
        listed = [item.item_id for item in answer.items]
        target = self._stream.item_id[then]
        rank = rank_in_list(listed, [item.score for item in answer.items], target)
        self._rank[n], self._outcome[n] = rank, answer.outcome
        if answer.view_ms is not None:
            self._view_ms[n] = answer.view_ms
        if 0 < rank <= QUALITY_K and (source := answer.items[listed.index(target)].source):
            self._sources[source] += 1

    def figures(self) -> dict[str, Any]:
        """Recall and MRR over all next clicks, an unanswered one being a miss, and over parts."""
        asked = np.flatnonzero(self._stream.next_click >= 0)
        rank, outcome = self._rank[asked], self._outcome[asked]
        prefix = np.minimum(self._stream.prefix[asked], LONGEST_PREFIX)
        targets = (self._stream.item_id[then] for then in self._stream.next_click[asked])
        known = np.array([target in self._known for target in targets])
        return {
            **_quality(rank, np.full(len(asked), True)),
            "by_prefix": {
                f"{n}{'+' * (n == LONGEST_PREFIX)}": _quality(rank, prefix == n)
                for n in range(1, LONGEST_PREFIX + 1)
            },
            "by_target": {"known": _quality(rank, known), "unknown": _quality(rank, ~known)},
            "by_outcome": {name: _quality(rank, outcome == name) for name in sorted({*outcome})},
            "hits_by_source": dict(self._sources.most_common()),
        }

    def view(self) -> dict[str, Any] | None:
        """How far the view was behind the click that it answered, or ahead of it; None without one.

        lists: made with a view. lag_s, lead_s: of the log's time; 0 where it was the other.
        clicks_behind: the clicks before the answered one that the view had not reached.
        """
        asked = np.flatnonzero((self._stream.next_click >= 0) & (self._view_ms != _NO_VIEW))
        if not len(asked):
            return None
        of_stream, view_ms = self._stream.timestamp_ms, self._view_ms[asked]
        lag_s = (of_stream[asked] - view_ms) / 1000
        behind = asked - np.searchsorted(of_stream, view_ms, side="right")
        return {
            "lists": len(asked),
            "lag_s": _quantiles(lag_s),
            "lead_s": _quantiles(-lag_s),
            "clicks_behind": _quantiles(behind),
        }


def _quality(rank: Int64[np.ndarray, "P"], where: Bool[np.ndarray, "P"]) -> dict[str, Any]:
    """Of the ranks at these places; 0 is a miss."""
    rank = rank[where]
    hit = rank[(rank > 0) & (rank <= QUALITY_K)]
    n = max(1, len(rank))
    return {
        "predictions": len(rank),
        "recall_at_20": round(len(hit) / n, 4),
        "mrr_at_20": round(float((1 / hit).sum()) / n, 4),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    """Of the values, those below 0 taken as 0."""
    positive = np.maximum(values, 0)
    return {name: round(float(np.quantile(positive, q)), 3) for name, q in QUANTILES.items()}
