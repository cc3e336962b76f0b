"""How high up a model lists the click that comes next.

The protocol is one for every model: the next item of every prefix of every session, against the
whole catalogue, nothing sampled. Sessions of similar length are stepped together.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int32, Int64

from train.data.sessions import Sessions
from train.measure.lists import count_listed
from train.measure.ranks import Ranks, conservative_rank, ranks_of

PROTOCOL = (
    "next item, every prefix of every session, whole catalogue ranked, nothing sampled, "
    "ties count against the model, repeats allowed; novel and repeat: targets not yet and already "
    "in the session, same lists; clicks on items unseen in training dropped, then sessions of one "
    "click; with_unknown: what is lost by that counted as misses; targets weighed where the log "
    "says so, those of weight 0 none"
)

# Scores of one step, at 4 bytes: 24 MB keeps 1 million items in bounds and 43,097 items at 139
# rows, where the matrix product is at its full speed. Above 32 MiB the allocator maps each
# step's matrix anew, and predictions/s fall by half.
_SCORES_PER_STEP = 6_000_000


@dataclass(frozen=True, slots=True)
class SessionBatch:
    """B sessions, the longest first."""

    item_index: Int64[np.ndarray, "B T"]
    """Click t of session b; zeros after a session's end, which nobody reads."""
    lengths: Int64[np.ndarray, "B"]
    timestamp_ms: Int64[np.ndarray, "B T"]
    """When click t was made; a predictor may only look at the prefix."""
    context: Int32[np.ndarray, "B T F"]
    """Its value in every context field, as a number; the same holds."""

    def steps(self) -> Iterator[Int64[np.ndarray, "b t"]]:
        """Prefixes of 1, 2, ... clicks of the sessions that continue after them: the first b rows,
        where b falls with t.
        """
        for t in range(1, int(self.lengths.max(initial=0))):
            yield self.item_index[: np.count_nonzero(self.lengths > t), :t]


@runtime_checkable  # so that the tests' checks of argument types can look at one
class Predictor(Protocol):
    """What the evaluator needs of a model or a baseline."""

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """Scores of the whole catalogue as the next click, for each of `batch.steps()`.

        Row b must be a function of that prefix alone. The evaluator does not change the array,
        and no longer needs it when it asks for the next one: its memory may be reused.
        """
        ...


def rank_targets(
    predictor: Predictor,
    sessions: Sessions,
    n_items: int,
    listed: Int64[np.ndarray, "N"] | None = None,
) -> Ranks:
    """The rank of the next click after every prefix of every session.

    Clicks with a target weight of 0 are read, but never a target. With `listed`, every item's entry
    grows by the number of top-20 lists that hold it, for `list_figures` of `lists.py`.
    """
    rank = np.zeros(sessions.n_clicks, dtype=np.int64)
    for row, batch in session_batches(sessions, batch_rows(n_items)):
        steps = zip(batch.steps(), predictor.predict(batch), strict=True)
        for prefix, scores in steps:
            n_active, position = prefix.shape
            target = batch.item_index[:n_active, position]
            rank[sessions.start[row[:n_active]] + position] = conservative_rank(scores, target)
            if listed is not None:
                count_listed(scores, listed)
    return ranks_of(sessions, rank)


def batch_rows(n_items: int) -> int:
    """Sessions that are stepped together."""
    return max(1, _SCORES_PER_STEP // n_items)


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
