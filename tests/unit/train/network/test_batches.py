from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from tests.unit.train.building import sessions_of
from train.data.sessions import Sessions
from train.network.batches import Step, session_parallel


def distinct_clicks(lengths: list[int]) -> Sessions:
    """Sessions whose clicks are all on different items: an item names its click."""
    start = np.cumsum([0, *lengths]).tolist()
    return sessions_of([range(a, b) for a, b in pairwise(start)])


def steps_of(lengths: list[int], batch_size: int, seed: int = 1) -> list[Step]:
    return list(session_parallel(distinct_clicks(lengths), batch_size, np.random.default_rng(seed)))


lengths = st.lists(st.integers(2, 9), min_size=1, max_size=30)


@settings(deadline=None)  # the first call compiles
@given(lengths, st.integers(1, 12))
def test_every_click_with_a_successor_comes_once_with_it(
    lengths: list[int], batch_size: int
) -> None:
    steps = steps_of(lengths, batch_size)
    clicks = np.concatenate([step.item_index for step in steps]).tolist()
    pairs = zip(clicks, np.concatenate([step.target for step in steps]).tolist(), strict=True)
    ends = np.cumsum(lengths) - 1
    expected = [(click, click + 1) for click in range(sum(lengths)) if click not in ends]
    assert sorted(pairs) == expected


@settings(deadline=None)  # the first call compiles
@given(lengths, st.integers(1, 12))
def test_a_lane_reads_each_session_from_its_first_click_to_its_last(
    lengths: list[int], batch_size: int
) -> None:
    starts = distinct_clicks(lengths).start.tolist()
    target: dict[int, int] = {}
    for step in steps_of(lengths, batch_size):
        for lane, (item, following, first) in enumerate(
            zip(step.item_index.tolist(), step.target.tolist(), step.first.tolist(), strict=True)
        ):
            assert first == (item in starts)
            if not first:
                assert item == target[lane], "the lane goes on where it was"
            target[lane] = following


@settings(deadline=None)  # the first call compiles
@given(lengths, st.integers(1, 12))
def test_lanes_run_out_from_the_last_one_on(lengths: list[int], batch_size: int) -> None:
    sizes = [len(step.target) for step in steps_of(lengths, batch_size)]
    assert sizes[0] <= batch_size
    assert sizes == sorted(sizes, reverse=True)
    # A lane is longer than its share by less than one session.
    assert len(sizes) <= (sum(lengths) - len(lengths)) / batch_size + max(lengths)


def test_in_time_order_the_sessions_come_as_they_stand() -> None:
    lengths = [3, 2, 5, 2, 2, 4]
    sessions = distinct_clicks(lengths)
    steps = list(session_parallel(sessions, 2, np.random.default_rng(1), in_time_order=True))
    began = [i for step in steps for i in step.item_index[step.first].tolist()]
    # Lanes take sessions of 2, 1, 4, 1, 1 and 3 steps: 0 and 1 first, 2 when 1 is done, and so on.
    assert began == sessions.start[:-1].tolist()


def test_the_order_follows_from_the_generator() -> None:
    lengths = [3] * 40

    def order(seed: int) -> list[int]:
        return [int(i) for step in steps_of(lengths, 4, seed) for i in step.item_index]

    assert order(1) == order(1) != order(2)
