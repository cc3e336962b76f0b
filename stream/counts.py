"""What is counted: how a batch went, and how good published lists were.

The planner fills these in, the metrics export them, and the live view counts with the same rules.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import NamedTuple, TypeVar

from stream.contract.records import Record

T = TypeVar("T")

QUALITY_K = 20
"""Live quality is counted at this rank, the K of the offline figures."""

PARTS = ("published", "network", "counts", "popularity")
"""What is compared on the same clicks: the list as it is, the network's own, the view's without
it, and what is popular."""


def rank_in_list(listed: Sequence[T], scores: Sequence[float], target: T) -> int:
    """Return the target's rank from 1, or 0 if it is not listed; best first.

    Ties count against it: it has the last rank of its score, as in the offline evaluation.
    """
    if target not in listed:
        return 0
    score = scores[listed.index(target)]
    if isnan(score):
        return 0
    rank = len(scores)
    while scores[rank - 1] != score:
        rank -= 1
    return rank


class Found(NamedTuple):
    """An item's rank in a list, 0 if it is not there, and the source that brought it, if said."""

    rank: int
    source: str | None = None


@dataclass(slots=True)
class Quality:
    """Recall@k and MRR@k over the ranks added so far."""

    k: int = QUALITY_K
    predictions: int = 0
    hits: int = 0
    reciprocal_rank: float = 0.0

    def add(self, rank: int) -> None:
        """Count one judged list; rank 0 is a miss."""
        self.predictions += 1
        if 0 < rank <= self.k:
            self.hits += 1
            self.reciprocal_rank += 1 / rank

    @property
    def recall(self) -> float:
        return self.hits / max(1, self.predictions)

    @property
    def mrr(self) -> float:
        return self.reciprocal_rank / max(1, self.predictions)


class Answered(NamedTuple):
    """A good click, its own timestamp, and which model answered it how."""

    record: Record
    timestamp_ms: int
    model_id: str
    outcome: str


class Judgement(NamedTuple):
    """A click judges its session's last list. ``rank`` 0: the list did not have its item."""

    late: bool
    rank: int


@dataclass(slots=True)
class BatchCounts:
    """One micro-batch over all its partitions.

    rejected: of each bad click the reason. skipped: clicks below the position. late: clicks older
    than their session's last one. stale: clicks so old that the watermark would call a session dead
    that was last seen at their time. begun, expired: sessions that began, that ended. rebuilt:
    sessions whose model state was made again from the trail. no_scores: lists of the model in
    which a score is NaN or infinite. encode_seconds, rank_seconds: wall time in the models' graphs.
    unknown: clicks on items that the network does not know. listed: items of the blended lists that
    were made, by source. hits: clicks on an item of the list before, by the source that brought it.
    parts: of each judged list of the sample the rank in each of ``PARTS``. events, published: of
    items, counted, and sent to the view.
    """

    answered: list[Answered] = field(default_factory=list)
    rejected: list[tuple[Record, str]] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    skipped: int = 0
    late: int = 0
    stale: int = 0
    begun: int = 0
    expired: int = 0
    events: int = 0
    published: int = 0
    unknown: int = 0
    listed: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    parts: list[tuple[int, ...]] = field(default_factory=list)
    rebuilt: int = 0
    no_scores: int = 0
    encode_seconds: float = 0.0
    rank_seconds: float = 0.0
