"""How high up a model lists the click that comes next.

The protocol is one for every model: the next item of every prefix of every session, against the
whole catalogue, nothing sampled. Sessions of similar length are stepped together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Int64

from stream.live.compiled import compiled
from train.data.sessions import SHORTEST_SESSION, Sessions

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
LIST_LENGTH = 20
_BLOCK = 128


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


@dataclass(frozen=True, slots=True)
class Ranks:
    """Every prediction of an evaluation, one row each, by session and then by position. Two models
    over the same sessions therefore line up row by row."""

    session: Int64[np.ndarray, "P"]
    """Row of the session in the evaluated sessions."""
    position: Int64[np.ndarray, "P"]
    """Clicks of the session that were known."""
    length: Int64[np.ndarray, "P"]
    """Clicks of the session, including those still to come."""
    target: Int64[np.ndarray, "P"]
    """item_index of the click that came."""
    rank: Int64[np.ndarray, "P"]
    """Place of the target in the list, from 1; among equal scores the last."""
    novel: Bool[np.ndarray, "P"]
    """The target is not among the known clicks."""
    weight: Float32[np.ndarray, "P"]
    """What the prediction counts; above 0."""

    def __len__(self) -> int:
        return len(self.rank)

    def of(self, rows: Bool[np.ndarray, "P"]) -> "Ranks":
        """Only the chosen predictions."""
        return Ranks(**{field.name: getattr(self, field.name)[rows] for field in fields(Ranks)})


def rank_targets(
    predictor: Predictor,
    sessions: Sessions,
    n_items: int,
    listed: Int64[np.ndarray, "N"] | None = None,
) -> Ranks:
    """The rank of the next click after every prefix of every session.

    Clicks with a target weight of 0 are read, but never a target. With `listed`, every item's entry
    grows by the number of top-20 lists that hold it, for `list_figures`.
    """
    rank = np.zeros(sessions.n_clicks, dtype=np.int64)
    for row, batch in session_batches(sessions, max(1, _SCORES_PER_STEP // n_items)):
        steps = zip(batch.steps(), predictor.predict(batch), strict=True)
        for prefix, scores in steps:
            n_active, position = prefix.shape
            target = batch.item_index[:n_active, position]
            rank[sessions.start[row[:n_active]] + position] = conservative_rank(scores, target)
            if listed is not None:
                count_listed(scores, listed)
    return ranks_of(sessions, rank)


def session_batches(
    sessions: Sessions, batch_size: int, shortest: int = SHORTEST_SESSION
) -> Iterator[tuple[Int64[np.ndarray, "B"], SessionBatch]]:
    """All sessions of so many clicks or more, at most `batch_size` at a time, with their rows."""
    lengths = sessions.lengths
    longest_first = np.argsort(-lengths, kind="stable")
    longest_first = longest_first[: np.count_nonzero(lengths >= shortest)]
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


@compiled
def conservative_rank(
    scores: Float[np.ndarray, "B N"], target: Int64[np.ndarray, "B"]
) -> Int64[np.ndarray, "B"]:
    """Place of each row's target from 1, behind every item that does not score below it. NaN is
    neither below nor above anything: it counts against the model on either side."""
    rank = np.empty(len(scores), dtype=np.int64)
    for b in range(len(scores)):
        rank[b] = place_of(scores[b], scores[b, target[b]])
    return rank


@compiled
def place_of(scores: Float[np.ndarray, "N"], score: float) -> int:
    """The place from 1 of an item with that score among all of these, itself included."""
    # 2 to 5 us a row of 43,097, as fast as it can be read; np.count_nonzero takes 6 to 11.
    n_below = 0
    for item in range(len(scores)):
        n_below += scores[item] < score
    return len(scores) - n_below


@compiled
def best_items(scores: Float[np.ndarray, "B N"], length: int) -> Int64[np.ndarray, "B length"]:
    """The highest scores of each row, best first, equal ones by item_index; -1 after the last. NaN
    is in no list."""
    # Beyond the first few hundred items hardly any enters the list: whether a block of them holds
    # one that does is asked of the whole block at once.
    n_rows, n_items = scores.shape
    items = np.full((n_rows, length), -1, dtype=np.int64)
    best = np.empty(length, dtype=scores.dtype)  # a float64 would be slow to compare with
    for row in range(n_rows):
        filled = 0
        best[:] = -np.inf
        lowest = best[length - 1]
        for first in range(0, n_items, _BLOCK):
            block = scores[row, first : first + _BLOCK]  # from 0 on, or no loop is vectorised
            n_better = 0
            for j in range(len(block)):
                n_better += block[j] > lowest
            if n_better == 0 and filled == length:
                continue
            for j in range(len(block)):
                score = block[j]
                if score > lowest or (filled < length and score == score):
                    place = min(filled, length - 1)
                    while place > 0 and best[place - 1] < score:
                        best[place], items[row, place] = best[place - 1], items[row, place - 1]
                        place -= 1
                    best[place], items[row, place] = score, first + j
                    filled = min(filled + 1, length)
                    lowest = best[length - 1]
    return items


def count_listed(scores: Float[np.ndarray, "B N"], listed: Int64[np.ndarray, "N"]) -> None:
    """Add 1 to every item in the top 20 of each row; see `best_items`."""
    items = best_items(scores, LIST_LENGTH)
    np.add.at(listed, items[items >= 0], 1)


def ranks_of(sessions: Sessions, rank: Int64[np.ndarray, "T"]) -> Ranks:
    """Ranks of all clicks that are targets: not a session's first, and of a weight above 0. Row t
    of `rank` is the rank that click t had as the next one."""
    lengths = sessions.lengths
    session = np.repeat(np.arange(len(sessions)), lengths)
    position = np.arange(sessions.n_clicks) - np.repeat(sessions.start[:-1], lengths)
    is_target = (position > 0) & (sessions.target_weight > 0)
    return Ranks(
        session=session,
        position=position,
        length=lengths[session],
        target=sessions.item_index,
        rank=rank,
        novel=_first_in_session(sessions, session),
        weight=sessions.target_weight,
    ).of(is_target)


def _first_in_session(sessions: Sessions, session: Int64[np.ndarray, "T"]) -> Bool[np.ndarray, "T"]:
    # A stable sort brings the clicks on one item in one session together, the earliest first.
    order = np.lexsort((sessions.item_index, session))
    item, within = sessions.item_index[order], session[order]
    novel = np.ones(sessions.n_clicks, dtype=bool)
    novel[order[1:]] = (item[1:] != item[:-1]) | (within[1:] != within[:-1])
    return novel
