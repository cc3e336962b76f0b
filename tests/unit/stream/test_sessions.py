"""Sessions in memory: what a restore and a commit leave, and what expiry may delete."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import StreamError
from stream.session import LastOutcome, PartitionSessions, Sessions, SessionState, encode_state

EMPTY = np.empty(0, np.float32)


def state(last_click_ms: int) -> bytes:
    return encode_state(
        SessionState(
            "0" * 16, last_click_ms, 1, LastOutcome.MODEL, (), EMPTY, np.empty(0, np.int32), EMPTY
        )
    )


def holding(**last_click_ms: int) -> PartitionSessions:
    partition = PartitionSessions()
    for name, ms in last_click_ms.items():
        partition.restore(name.encode(), state(ms))
    partition.finish_restore()
    return partition


def clicked_before(before_ms: int) -> Callable[[int], bool]:
    return lambda last_click_ms: last_click_ms < before_ms


def collect_before(
    partition: PartitionSessions, before_ms: int, keep: set[bytes], limit: int
) -> list[bytes]:
    """Collect what was last clicked before a time, and delete it as a commit does."""
    dead = partition.collect(clicked_before(before_ms), keep, limit)
    partition.apply(dict.fromkeys(dead))
    return dead


def queued(partition: PartitionSessions) -> list[bytes]:
    return sorted(key for _, key in partition.expiry)


def test_a_restore_takes_states_and_tombstones() -> None:
    partition = PartitionSessions()
    for key, value in [
        (b"s", state(1)),
        (b"t", state(2)),
        (b"s", state(3)),
        (b"t", None),
        (b"never there", None),
    ]:
        partition.restore(key, value)
    partition.finish_restore()
    assert partition.states == {b"s": state(3)}
    assert partition.expiry == [(3, b"s")]


def test_a_restore_refuses_what_a_newer_version_wrote() -> None:
    with pytest.raises(StreamError):
        PartitionSessions().restore(b"s", b"\x02" + state(1)[1:])


def test_a_commit_is_applied_whole() -> None:
    partition = holding(old=1, dead=0)
    partition.apply({b"new": state(5), b"old": state(6), b"dead": None})
    assert partition.states == {b"new": state(5), b"old": state(6)}


def test_dead_sessions_are_collected_oldest_first_and_no_more_than_the_limit() -> None:
    partition = holding(c=3, a=1, d=4, b=2, alive=99)
    assert collect_before(partition, 50, set(), 3) == [b"a", b"b", b"c"]
    assert collect_before(partition, 50, set(), 3) == [b"d"]
    assert collect_before(partition, 50, set(), 3) == []
    assert partition.states == {b"alive": state(99)}


def test_a_session_that_was_clicked_since_is_pushed_back_with_its_later_time() -> None:
    partition = holding(s=1, t=35)
    partition.apply({b"s": state(40)})
    assert sorted(partition.expiry) == [(1, b"s"), (35, b"t")], "one entry, of when it was pushed"
    assert collect_before(partition, 30, set(), 10) == []
    assert sorted(partition.expiry) == [(35, b"t"), (40, b"s")]
    assert collect_before(partition, 41, set(), 10) == [b"t", b"s"]


def test_a_session_of_the_batch_is_never_collected_and_stays_queued() -> None:
    partition = holding(s=1, t=2)
    assert collect_before(partition, 50, {b"s"}, 10) == [b"t"]
    assert queued(partition) == [b"s"]
    assert collect_before(partition, 50, set(), 10) == [b"s"]


def test_no_limit_is_spent_on_a_queue_that_has_nothing_dead() -> None:
    partition = holding(a=5, b=6)
    asked: list[int] = []

    def is_dead(last_click_ms: int) -> bool:
        asked.append(last_click_ms)
        return False

    assert partition.collect(is_dead, set(), 1000) == []
    assert asked == [5]


# Steps: a batch of clicks at a time that only grows, and collecting with a small limit.
steps = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("stuvwxyz"), st.integers(-30, 0), max_size=4),
        st.integers(0, 20),
        st.integers(0, 4),
        st.booleans(),
    ),
    max_size=40,
)


@given(steps)
def test_whatever_happens_the_queue_has_one_entry_a_session_and_only_dead_ones_go(
    made: list[tuple[dict[str, int], int, int, bool]],
) -> None:
    partition, now_ms, idle_ms = PartitionSessions(), 100, 15
    truth: dict[bytes, int] = {}
    for clicks, passed_ms, limit, restored in made:
        now_ms += passed_ms
        touched = {name.encode(): now_ms + late_ms for name, late_ms in clicks.items()}
        dead = partition.collect(clicked_before(now_ms - idle_ms), touched.keys(), limit)
        assert len(dead) <= limit
        assert not set(dead) & touched.keys()
        assert all(now_ms - truth[key] > idle_ms for key in dead)
        partition.apply({key: state(ms) for key, ms in touched.items()} | dict.fromkeys(dead))
        truth = {key: ms for key, ms in (truth | touched).items() if key not in dead}
        if restored:
            partition.finish_restore()
        assert partition.states == {key: state(ms) for key, ms in truth.items()}
        assert queued(partition) == sorted(truth)
    while partition.states:  # and none is ever lost to the queue
        assert collect_before(partition, 10**6, set(), 3)


def test_a_million_ms_of_traffic_leaves_no_more_sessions_than_are_alive() -> None:
    """Memory comes back down: 64 a batch outruns new sessions at any rate."""
    rng = random.Random(2)
    partition, held = PartitionSessions(), []
    for now_ms in range(0, 1_000_000, 5_000):
        clicked = {b"%d" % rng.randrange(10**9): state(now_ms) for _ in range(rng.randint(0, 20))}
        dead = partition.collect(clicked_before(now_ms - 50_000), clicked.keys(), 64)
        partition.apply(clicked | dict.fromkeys(dead))
        held.append(len(partition.states))
    assert max(held) <= 20 * 11
    assert len(partition.expiry) == len(partition.states)


def test_a_partition_that_is_lost_is_dropped_and_one_that_stays_is_kept() -> None:
    sessions = Sessions()
    sessions.own([0, 1])
    sessions.restore(0, b"s", state(1))
    sessions.restore(1, b"t", state(1))
    kept = sessions.partitions[1]
    sessions.own([2, 1])
    assert sessions.partitions[1] is kept
    assert sessions.sizes() == {1: 1, 2: 0}
    assert len(sessions) == 1
    assert sessions.get(1, b"t") == state(1)
    assert sessions.get(1, b"s") is None
