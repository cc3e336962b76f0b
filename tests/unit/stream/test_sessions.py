"""Sessions in memory: what a restore and a commit leave, and what expiry may delete."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import StreamError
from stream.position import Position
from stream.session import (
    LastOutcome,
    PartitionSessions,
    SessionState,
    encode_state,
)
from stream.table import BUCKET_MS, States
from stream.transport.protocol import Transaction

EMPTY = np.empty(0, np.float32)
POSITION = Position(0, "t")


def state(seen_ms: int) -> bytes:
    parts = "0" * 16, seen_ms, 7, 1, LastOutcome.MODEL, (), EMPTY, np.empty(0, np.int32), EMPTY
    return encode_state(SessionState(*parts))


def holding(**seen_ms: int) -> PartitionSessions:
    partition = PartitionSessions()
    for name, ms in seen_ms.items():
        partition.restore(name.encode(), state(ms))
    partition.finish_restore()
    return partition


def seen_before(before_ms: int) -> Callable[[int], bool]:
    return lambda seen_ms: seen_ms < before_ms


def collect_before(
    partition: PartitionSessions, before_ms: int, keep: set[bytes], limit: int
) -> list[bytes]:
    """Collect what was last seen before a time, and delete it as a commit does."""
    dead = partition.collect(seen_before(before_ms), keep, limit)
    partition.apply(dict.fromkeys(dead), POSITION)
    return dead


def queued(partition: PartitionSessions) -> list[tuple[int, bytes]]:
    """Every entry of the queue, with its bucket's minute."""
    assert sorted(partition._minutes) == sorted(partition._buckets), "a minute for each bucket"
    return sorted((m, key) for m, keys in partition._buckets.items() for key in keys)


def test_a_restore_takes_states_and_tombstones() -> None:
    partition = PartitionSessions()
    for key, value in [
        (b"s", state(1)),
        (b"t", state(2)),
        (b"s", state(3 * BUCKET_MS)),
        (b"t", None),
        (b"never there", None),
    ]:
        partition.restore(key, value)
    partition.finish_restore()
    assert partition.states == {b"s": state(3 * BUCKET_MS)}
    assert queued(partition) == [(3, b"s")]


def test_a_restore_refuses_what_a_newer_version_wrote() -> None:
    with pytest.raises(StreamError):
        PartitionSessions().restore(b"s", b"\x04" + state(1)[1:])


def test_a_commit_is_applied_whole() -> None:
    partition = holding(old=1, dead=0)
    position = Position(7, "t")
    partition.apply({b"new": state(5), b"old": state(6), b"dead": None}, position)
    assert partition.states == {b"new": state(5), b"old": state(6)}
    assert partition.position is position


def test_dead_sessions_are_collected_by_the_minute_and_no_more_than_the_limit() -> None:
    minute = BUCKET_MS
    partition = holding(c=2 * minute, a=1, d=5 * minute, b=2, alive=99 * minute)
    assert sorted(collect_before(partition, 50 * minute, set(), 2)) == [b"a", b"b"]
    assert collect_before(partition, 50 * minute, set(), 1) == [b"c"]
    assert collect_before(partition, 50 * minute, set(), 3) == [b"d"]
    assert collect_before(partition, 50 * minute, set(), 3) == []
    assert partition.states == {b"alive": state(99 * minute)}


def test_only_the_dead_ones_of_a_minute_are_collected() -> None:
    partition = holding(a=1, b=2, c=3)
    assert collect_before(partition, 2, set(), 10) == [b"a"]
    assert queued(partition) == [(0, b"b"), (0, b"c")]
    assert sorted(collect_before(partition, 10, set(), 10)) == [b"b", b"c"]


def test_a_session_that_was_clicked_since_goes_to_the_bucket_of_its_later_time() -> None:
    minute = BUCKET_MS
    partition = holding(s=1, t=3 * minute)
    partition.apply({b"s": state(4 * minute)}, POSITION)
    assert queued(partition) == [(0, b"s"), (3, b"t")], "one entry, of when it was put there"
    assert collect_before(partition, 2 * minute, set(), 10) == []
    assert queued(partition) == [(3, b"t"), (4, b"s")]
    assert collect_before(partition, 4 * minute + 1, set(), 10) == [b"t", b"s"]


def test_a_session_of_the_batch_is_never_collected_and_stays_queued() -> None:
    partition = holding(s=1, t=2)
    assert collect_before(partition, 50, {b"s"}, 10) == [b"t"]
    assert queued(partition) == [(0, b"s")]
    assert collect_before(partition, 50, set(), 10) == [b"s"]


def test_no_limit_is_spent_on_a_queue_that_has_nothing_dead() -> None:
    partition = holding(a=5, b=6)
    asked: list[int] = []

    def is_dead(seen_ms: int) -> bool:
        asked.append(seen_ms)
        return False

    assert partition.collect(is_dead, set(), 1000) == []
    assert asked == [0], "for the minute, and for none of its sessions"


def test_a_batch_looks_at_no_more_entries_than_the_limit() -> None:
    partition = holding(**{f"s{n}": n for n in range(100)})
    partition.apply({b"s%d" % n: state(10**9) for n in range(100)}, POSITION)
    for looked_at in (30, 60, 90, 100):
        assert collect_before(partition, 10**8, set(), 30) == []
        assert sum(minute > 0 for minute, _ in queued(partition)) == looked_at


# Steps: a batch of clicks at a time that only grows, and collecting with a small limit. Times
# within a minute and over several: a bucket may hold the living and the dead.
steps = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("stuvwxyz"), st.integers(-80_000, 0), max_size=4),
        st.sampled_from([0, 7, 900, 20_000, 59_999, 60_000, 200_000]),
        st.integers(0, 4),
        st.booleans(),
    ),
    max_size=40,
)


@given(steps)
def test_whatever_happens_the_queue_has_one_entry_a_session_and_only_dead_ones_go(
    made: list[tuple[dict[str, int], int, int, bool]],
) -> None:
    partition, now_ms, idle_ms = PartitionSessions(), 100_000, 50_000
    truth: dict[bytes, int] = {}
    for clicks, passed_ms, limit, restored in made:
        now_ms += passed_ms
        touched = {name.encode(): now_ms + late_ms for name, late_ms in clicks.items()}
        dead = partition.collect(seen_before(now_ms - idle_ms), touched.keys(), limit)
        assert len(dead) <= limit
        assert not set(dead) & touched.keys()
        assert all(now_ms - truth[key] > idle_ms for key in dead)
        changes = {key: state(ms) for key, ms in touched.items()} | dict.fromkeys(dead)
        partition.apply(changes, POSITION)
        truth = {key: ms for key, ms in (truth | touched).items() if key not in dead}
        if restored:
            states, partition = partition.states, PartitionSessions()
            for key, raw in states.items():
                partition.restore(key, raw)
            partition.finish_restore()
        assert partition.states == {key: state(ms) for key, ms in truth.items()}
        assert sorted(key for _, key in queued(partition)) == sorted(truth)
    while partition.states:  # and none is ever lost to the queue
        assert collect_before(partition, 10**8, set(), 3)


def test_a_million_ms_of_traffic_leaves_no_more_sessions_than_are_alive() -> None:
    """Memory comes back down: 64 a batch outruns new sessions at any rate."""
    rng = random.Random(2)
    partition, held = PartitionSessions(), []
    for now_ms in range(0, 1_000_000, 5_000):
        clicked = {b"%d" % rng.randrange(10**9): state(now_ms) for _ in range(rng.randint(0, 20))}
        dead = partition.collect(seen_before(now_ms - 50_000), clicked.keys(), 64)
        partition.apply(clicked | dict.fromkeys(dead), POSITION)
        held.append(len(partition.states))
    # The 50 s of the living, the batch of now, and a minute that may wait for the rest of its kind.
    assert max(held) <= 20 * (10 + 1 + 12)
    assert len(queued(partition)) == len(partition.states)


def test_a_partition_that_is_lost_is_dropped_and_one_that_stays_is_kept() -> None:
    sessions, kept = States(), holding(t=1)
    sessions.own({0: holding(s=1), 1: kept})
    sessions.drop([0, 7])
    sessions.own({2: holding()})
    assert sessions.partitions[1] is kept
    assert sessions.sizes() == {1: 1, 2: 0}
    assert len(sessions) == 1
    assert sessions.get(1, b"t") == state(1)


def test_a_transaction_is_applied_to_each_partition_of_it() -> None:
    sessions = States()
    sessions.own({p: holding(s=1) for p in (0, 1, 2)})
    transaction = Transaction(positions={0: Position(5, "t"), 1: Position(6, "t")})
    transaction.changelog[0][b"s"] = state(2)
    transaction.changelog[0][b"new"] = state(3)
    sessions.apply(transaction)
    assert sessions.get(0, b"s") == state(2)
    assert sessions.get(0, b"new") == state(3)
    assert sessions.get(1, b"s") == sessions.get(2, b"s") == state(1)
    assert [sessions.partitions[p].position.next_offset for p in (0, 1)] == [5, 6]
