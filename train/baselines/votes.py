"""From a few votes a prefix to scores of the whole catalogue.

A method that counts gives points to some hundreds of items and has nothing to say of the others.
The array of scores is therefore filled once a batch with what everybody gets (`base`), and each
step only adds its votes and takes them back: at 43,097 items a fresh row costs as much as finding
the votes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int32, Int64

from stream.live.compiled import compiled
from train.measure.ranking import SessionBatch


class Votes(NamedTuple):
    """Points of b prefixes: those of row r are `start[r]:start[r + 1]`; an item's add up."""

    start: Int64[np.ndarray, "b_plus_1"]
    item: Int32[np.ndarray, "votes"]
    weight: Float64[np.ndarray, "votes"]


def vote_scores(
    batch: SessionBatch,
    base: Float[np.ndarray, "N"],
    vote: Callable[[Int64[np.ndarray, "b t"]], Votes],
) -> Iterator[Float[np.ndarray, "b N"]]:
    """`base` and the votes on each prefix, for each of `batch.steps()`, in the precision of `base`.
    The array is the same in every step: what is yielded holds until the next one is asked for."""
    scores = np.tile(base, (int(np.count_nonzero(batch.lengths > 1)), 1))
    for prefix in batch.steps():
        votes = vote(prefix)
        _add_votes(scores, votes)
        yield scores[: len(prefix)]
        _take_back(scores, votes, base)


@compiled
def _add_votes(scores: Float[np.ndarray, "B N"], votes: Votes) -> None:
    for row in range(len(votes.start) - 1):
        for vote in range(votes.start[row], votes.start[row + 1]):
            scores[row, votes.item[vote]] += votes.weight[vote]


@compiled
def _take_back(
    scores: Float[np.ndarray, "B N"], votes: Votes, base: Float[np.ndarray, "N"]
) -> None:
    for row in range(len(votes.start) - 1):
        for vote in range(votes.start[row], votes.start[row + 1]):
            scores[row, votes.item[vote]] = base[votes.item[vote]]
