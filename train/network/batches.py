"""Sessions side by side: the mini-batches of a recurrent network without padding.

Session-parallel mini-batches of Hidasi et al. (arXiv 1511.06939, sec. 3.1.1): lane b of the batch
reads one session after the other, and its state is reset where a session begins.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from train.data.sessions import Sessions
from train.network.kernels import first_free_lanes


class Step(NamedTuple):
    """One click of every lane, and the click that followed it."""

    item_index: Int64[np.ndarray, "B"]
    target: Int64[np.ndarray, "B"]
    first: Bool[np.ndarray, "B"]
    """The click opens its session: the lane's state is of another one."""
    context: Int32[np.ndarray, "B F"]
    """Of the click."""
    weight: Float32[np.ndarray, "B"]
    """What the target counts."""


def session_parallel(
    sessions: Sessions, batch_size: int, rng: np.random.Generator, *, in_time_order: bool = False
) -> Iterator[Step]:
    """Every click with a successor once, `batch_size` sessions at a time.

    Sessions come in a random order, or as they stand, the newest last; each goes to the lane that
    is free first. B falls at the end as lanes run out: lane b of a step is lane b of the step
    before, the last ones are missing.
    """
    order = np.arange(len(sessions)) if in_time_order else rng.permutation(len(sessions))
    lane = first_free_lanes(sessions.lengths[order] - 1, min(batch_size, len(sessions)))
    by_lane = np.argsort(lane, kind="stable")
    order, lane = order[by_lane], lane[by_lane]
    n_steps = sessions.lengths[order] - 1
    end = np.cumsum(n_steps)
    begin = end - n_steps
    # Row of each input click in the flat arrays, session after session, lane after lane.
    click = np.repeat(sessions.start[order] - begin, n_steps) + np.arange(n_steps.sum())
    first = np.zeros(len(click), dtype=bool)
    first[begin] = True

    lane_end = end[np.searchsorted(lane, np.arange(lane[-1] + 1), side="right") - 1]
    lane_begin = np.concatenate([[0], lane_end[:-1]])
    longest_first = np.argsort(lane_begin - lane_end, kind="stable")
    lane_begin, lane_length = lane_begin[longest_first], (lane_end - lane_begin)[longest_first]

    for t in range(lane_length[0]):
        place = lane_begin[: np.count_nonzero(lane_length > t)] + t
        row = click[place]
        yield Step(
            item_index=sessions.item_index[row],
            target=sessions.item_index[row + 1],
            first=first[place],
            context=sessions.context[row],
            weight=sessions.target_weight[row + 1],
        )
