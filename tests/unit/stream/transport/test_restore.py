"""How a restore settles what a former owner left and finds its positions, without a broker."""

import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from stream.errors import NewerFormatError, StreamError
from stream.position import POSITION_KEY, Position, encode_position
from stream.settings import KafkaSettings, Wiring
from stream.transport import restore as module
from stream.transport.protocol import Transaction, TransactionLostError
from stream.transport.reader import Unreadable
from stream.transport.restore import PartitionError, Restore, former_ids
from tests.counting_processor import Table

WIRING = Wiring("g", "in", "log", {"answers": "out"})
FORMER = "g-former"


class Log:
    """What the brokers say: bounds of topics, records of the changelog, offsets of the group."""

    def __init__(self) -> None:
        self.records: list[tuple[int, int, bytes, bytes | None]] = []
        self.stable: deque[int] = deque()  # of the changelog at each look, then its end
        self.end = 0
        self.input = (0, 10**6)
        self.output_hangs = False
        self.committed: deque[dict[int, int] | None] = deque()
        self.reads: list[tuple[Mapping[int, int], Mapping[int, int]]] = []
        self.unreadable: list[Unreadable] = []

    def append(self, key: bytes, value: bytes | None) -> None:
        self.records.append((0, self.end, key, value))
        self.end += 1

    def bounds(self, settings: Any, topic: str, partitions: Any) -> dict[int, tuple[int, ...]]:
        if topic == "out":
            return dict.fromkeys(partitions, (0, 7 - self.output_hangs, 7))
        if topic == "in":
            return dict.fromkeys(partitions, (self.input[0], self.input[1], self.input[1]))
        stable = self.stable.popleft() if self.stable else self.end
        return dict.fromkeys(partitions, (0, stable, self.end))

    def ends_of(self, settings: Any, places: Any) -> dict[tuple[str, int], tuple[int, ...]]:
        return {(topic, p): self.bounds(settings, topic, [p])[p][1:] for topic, p in sorted(places)}

    def read(
        self,
        settings: Any,
        topic: str,
        start: Mapping[int, int],
        end: Mapping[int, int],
        stop: threading.Event,
        *,
        passed_over: list[Unreadable],
    ) -> Iterator[list[Any]]:
        self.reads.append((start, end))
        passed_over += [u for u in self.unreadable if start[0] <= u.offsets.start < end[0]]
        yield [Changed(*r) for r in self.records if start[r[0]] <= r[1] < end[r[0]]]

    def group_offsets(self, *arguments: Any) -> dict[int, int] | None:
        return self.committed.popleft() if self.committed else {}


class Changed:
    def __init__(self, partition: int, offset: int, key: bytes, value: bytes | None) -> None:
        self.partition, self.offset = (lambda: partition), (lambda: offset)
        self.key, self.value = (lambda: key), (lambda: value)


class FakeDelivery:
    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.committed: dict[str, bool] = {}
        self.states: dict[str, str] = {}

    def targets(self, partition: int) -> list[tuple[str, int]]:
        return [("out", partition), ("log", partition)]

    async def note(self, names: Collection[str]) -> set[str]:
        known = {name: self.states[name] for name in names if name in self.states}
        ended = {name: state for name, state in known.items() if state != "Empty"}
        self.committed |= {name: state == "CompleteCommit" for name, state in ended.items()}
        return {name for name, state in known.items() if state == "Ongoing"}

    async def fence(self, transactional_ids: Collection[str]) -> None:
        if transactional_ids:
            self.calls.append(("fence", sorted(transactional_ids)))

    async def end_hanging(self, name: str, partitions: Any, *, commit: bool) -> None:
        self.calls.append(("commit of" if commit else "abort of", (name, sorted(partitions))))

    async def commit(self, transaction: Transaction) -> None:
        self.calls.append(("commit", dict(transaction.positions)))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    monkeypatch.setattr(module, "bounds", log.bounds)
    monkeypatch.setattr(module, "ends_of", log.ends_of)
    monkeypatch.setattr(module, "read_committed", log.read)
    monkeypatch.setattr(module, "group_offsets", log.group_offsets)
    monkeypatch.setattr(module, "MARKERS_S", 0.1)
    monkeypatch.setattr(module, "_HANGS_S", 0.1)
    monkeypatch.setattr(module, "TRANSACTION_TIMEOUT_S", 0.2)
    return log


async def run(
    delivery: FakeDelivery, topic_id: str = "id", new_table: type[Table] = Table
) -> tuple[Table, Position, int]:
    """Restore partition 0: its table, its position, and how many records were lost."""
    fake: Any = delivery
    restore = Restore(KafkaSettings(), WIRING, fake, [0])
    restored, how = await restore.run(new_table, topic_id, "me", "here:1")
    table, position = restored[0]
    assert isinstance(table, Table)
    return table, position, how.n_lost


def position(next_offset: int, owner: str = FORMER) -> bytes:
    return encode_position(Position(next_offset, "id", 77, owner=owner, address="there:1"))


async def test_the_changelog_is_taken_and_the_position_is_claimed(log: Log) -> None:
    for key, value in [(b"a", b"1"), (b"b", b"2"), (POSITION_KEY, position(5)), (b"a", None)]:
        log.append(key, value)
    delivery = FakeDelivery()
    table, found, n_lost = await run(delivery)
    assert table.values == {b"b": b"2"}
    assert found == Position(5, "id", 77, owner="me", address="here:1")
    assert delivery.calls == [("commit", {0: found})]
    assert n_lost == 0


async def test_what_a_former_owner_commits_meanwhile_is_read_too(log: Log) -> None:
    log.append(POSITION_KEY, position(5))
    log.append(b"a", b"1")
    log.append(POSITION_KEY, position(6))
    log.stable += [1, 1, 1]  # the last two records are in an open transaction, for two looks
    delivery = FakeDelivery()
    table, found, _ = await run(delivery)
    assert (table.values, found.next_offset) == ({b"a": b"1"}, 6)
    assert [call for call, _ in delivery.calls] == ["commit"], "it ended by itself"
    assert [(start[0], end[0]) for start, end in log.reads] == [(0, 1), (1, 3)]


@pytest.mark.parametrize("shows", ["in the changelog", "as a pending offset"])
async def test_an_owner_whose_transaction_stays_open_is_fenced(log: Log, shows: str) -> None:
    log.append(POSITION_KEY, position(5))
    if shows == "in the changelog":
        log.append(b"a", b"1")
        log.stable += [1] * 10_000
    else:
        log.committed += [None] * 10_000

    class Fencing(FakeDelivery):
        async def fence(self, transactional_ids: Collection[str]) -> None:
            await super().fence(transactional_ids)
            if transactional_ids:
                log.stable.clear()
                log.committed.clear()

    delivery = Fencing()
    delivery.states = dict.fromkeys((A, B), "Ongoing")
    await run(delivery)
    assert delivery.calls[0] == ("fence", [f"{FORMER}-0", f"{FORMER}-1"])
    assert delivery.calls[1][0] == "commit"


class Ending(FakeDelivery):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    async def end_hanging(self, name: str, partitions: Any, *, commit: bool) -> None:
        await super().end_hanging(name, partitions, commit=commit)
        self.log.stable.clear()
        self.log.output_hangs = False


A, B = f"{FORMER}-0", f"{FORMER}-1"


@pytest.mark.parametrize(
    ("states", "offset", "fenced", "committed"),
    [
        ({A: "CompleteCommit", B: "CompleteAbort"}, 5, [], [A]),
        ({A: "CompleteAbort", B: "CompleteAbort"}, 6, [], []),
        ({A: "Ongoing", B: "CompleteCommit"}, 5, [A], [B]),
        ({A: "Empty"}, 5, [], []),
        ({}, 6, [], [A, B]),  # nobody knows, but its offsets can be seen
    ],
)
async def test_what_hangs_in_the_changelog_is_ended_as_its_coordinator_has_decided(
    log: Log, states: dict[str, str], offset: int, fenced: list[str], committed: list[str]
) -> None:
    log.append(POSITION_KEY, position(5))
    log.append(b"a", b"1")
    log.stable += [1] * 100
    log.committed += [{0: offset}] * 100
    delivery = Ending(log)
    delivery.states = states
    await run(delivery)
    calls = [call for call in delivery.calls if call[0] != "commit"]
    assert [names for what, names in calls if what == "fence"] == [fenced] * bool(fenced)
    assert sorted(of[0] for what, of in calls if what == "commit of") == committed
    assert len(calls) == bool(fenced) + 2, "and the others are aborted"


@pytest.mark.parametrize("own", [False, True])
async def test_what_hangs_in_an_output_alone_is_ended_too(log: Log, own: bool) -> None:
    """If it is our own, the start has made the coordinator forget, but we have asked before."""
    log.append(POSITION_KEY, position(5, "me" if own else FORMER))
    log.output_hangs = True
    delivery = Ending(log)
    if own:
        delivery.committed = {"me-0": True, "me-1": False}
    await run(delivery)
    calls = sorted(name for what, (name, _) in delivery.calls[-3:-1] if what == "commit of")
    assert calls == ["me-0"] * own, "and what nobody knows of was aborted by a start"


async def test_what_hangs_in_an_output_that_partitions_share_may_be_of_the_owner_of_any(
    log: Log,
) -> None:
    for partition, owner in enumerate(("g-one", "g-two")):
        log.records.append((partition, 0, POSITION_KEY, position(5, owner)))
    log.end, log.output_hangs = 1, True

    class Sharing(Ending):
        def targets(self, partition: int) -> list[tuple[str, int]]:
            return [("out", 0), ("log", partition)]

    fake: Any = Sharing(log)
    await Restore(KafkaSettings(), WIRING, fake, [0, 1]).run(Table, "id", "me", "here:1")
    ended = sorted(of for what, of in fake.calls if what == "abort of")
    assert ended == [("g-one-0", [0]), ("g-one-1", [0]), ("g-two-0", [1]), ("g-two-1", [1])]


async def test_what_others_leave_open_in_an_output_holds_nothing_up_for_good(log: Log) -> None:
    log.append(POSITION_KEY, position(5))
    log.output_hangs = True
    delivery = FakeDelivery()
    with capture_logs() as logged:
        await run(delivery)
    assert delivery.calls[-1][0] == "commit"
    assert not any(line["event"].startswith("hanging_transaction") for line in logged), "none ended"
    (told,) = (line["detail"] for line in logged if line["event"] == "transaction_left_open")
    assert "kafka-transactions.sh abort --topic out --partition 0 --start-offset 6" in told


async def test_a_transaction_that_no_id_ends_is_the_operators_and_tried_again_later(
    log: Log,
) -> None:
    log.append(POSITION_KEY, position(5))
    log.append(b"a", b"1")
    log.stable += [1] * 1000
    delivery = FakeDelivery()
    with (
        capture_logs() as logged,
        pytest.raises(PartitionError, match="hangs in") as hangs,
    ):
        await run(delivery)
    assert hangs.value.partitions == {0}
    assert "commit" not in [call for call, _ in delivery.calls]
    events = [line["event"] for line in logged]
    assert events == ["transaction_left_open"], "and none is said to end"


@pytest.mark.parametrize("settles", [True, False])
async def test_offsets_that_hang_are_told_as_ended_if_they_are(log: Log, settles: bool) -> None:
    log.append(POSITION_KEY, position(5))
    log.committed += [None] * 10_000

    class Settling(FakeDelivery):
        async def end_hanging(self, name: str, partitions: Any, *, commit: bool) -> None:
            await super().end_hanging(name, partitions, commit=commit)
            if settles:
                log.committed.clear()

    with capture_logs() as logged:
        if settles:
            await run(Settling())
        else:
            with pytest.raises(TransactionLostError, match=r"still open in the offsets of group"):
                await run(Settling())
    ended = [line["transactional_id"] for line in logged if line["event"].startswith("hanging_")]
    assert ended == [A] * settles, "the first of the two has done it"


async def test_an_owner_of_the_version_before_is_fenced_at_once(log: Log) -> None:
    """It sent no offsets, so the group does not fence it."""
    log.append(POSITION_KEY, position(5, owner=""))
    delivery = FakeDelivery()
    await run(delivery)
    assert [call for call, _ in delivery.calls] == ["fence", "commit"]
    assert delivery.calls[0] == ("fence", ["g-0"])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, ()),
        (Position(0, "id"), ("g-3",)),
        (Position(0, "id", owner="w"), ("w-0", "w-1")),
    ],
)
def test_former_ids_are_the_owners_or_the_partitions(
    found: Position | None, expected: tuple[str, ...]
) -> None:
    assert former_ids(WIRING, 3, found) == expected


# -- what is not ours -------------------------------------------------------------------------


class Choosy(Table):
    def restore(self, key: bytes, value: bytes | None) -> None:
        super().restore(key, value)
        if value == b"garbage":
            raise StreamError("no state")
        if value == b"newer":
            raise NewerFormatError("a state of tomorrow")


@pytest.mark.parametrize("replacement", [None, b"2"])
async def test_what_is_replaced_does_no_harm_whatever_it_was(
    log: Log, replacement: bytes | None
) -> None:
    for key, value in [
        (b"a", b"garbage"),
        (b"b", b"newer"),
        (POSITION_KEY, b"garbage"),
        (b"a", replacement),
        (b"b", replacement),
        (POSITION_KEY, None),
        (POSITION_KEY, position(5)),
    ]:
        log.append(key, value)
    log.stable += [4]  # the rest comes with the second look
    table, found, _ = await run(FakeDelivery(), new_table=Choosy)
    assert table.values == ({} if replacement is None else {b"a": b"2", b"b": b"2"})
    assert found.next_offset == 5


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (b"\xffa'" + b"x" * 99, b"garbage", r"key '\\xffa'x{58}': no state; nobody but"),
        (POSITION_KEY, b"garbage", r"key '\\x00position': a position record cannot be read as "),
        (POSITION_KEY, None, r"key '\\x00position': the position record was deleted; nobody"),
    ],
)
async def test_what_cannot_be_read_at_the_end_is_named_and_holds_up_its_partition(
    log: Log, key: bytes, value: bytes | None, sentence: str
) -> None:
    log.append(POSITION_KEY, position(5))
    log.append(key, value)
    log.records.append((1, 0, POSITION_KEY, position(5)))
    delivery: Any = FakeDelivery()
    restore = Restore(KafkaSettings(), WIRING, delivery, [0, 1])
    with pytest.raises(PartitionError, match=r"^log-0 .*: offset 1, " + sentence) as refused:
        await restore.run(Choosy, "id", "me", "here:1")
    assert "python -m stream reset --partition 0 --to earliest|latest|" in str(refused.value)
    assert refused.value.partitions == {0}
    assert not delivery.calls, "nothing is claimed"


async def test_what_a_newer_version_wrote_ends_the_process(log: Log) -> None:
    log.append(b"a", b"garbage")
    log.append(b"b", b"newer")
    with pytest.raises(NewerFormatError, match=r"^log-0, offset 1, key 'b': a state of tomorrow$"):
        await run(FakeDelivery(), new_table=Choosy)


@pytest.mark.parametrize(("given_up_until", "is_served"), [(0, False), (2, False), (3, True)])
async def test_a_batch_that_cannot_be_read_is_passed_over_once_an_operator_has_given_it_up(
    log: Log, given_up_until: int, is_served: bool
) -> None:
    log.end = 3
    log.unreadable.append(Unreadable(0, range(2, 3), "lies there"))
    log.append(POSITION_KEY, encode_position(Position(5, "id", given_up_until=given_up_until)))
    if is_served:
        _, found, _ = await run(FakeDelivery())
        assert found.given_up_until == given_up_until, "and stays so"
    else:
        with pytest.raises(PartitionError, match=r": offset 2 lies there \(offsets 2 to 2\); nob"):
            await run(FakeDelivery())


# -- positions --------------------------------------------------------------------------------


async def test_a_partition_that_nobody_has_had_begins_at_the_logs_begin(log: Log) -> None:
    log.input = (40, 90)
    _, found, n_lost = await run(FakeDelivery())
    assert (found.next_offset, found.topic_id, n_lost) == (40, "id", 0)


async def test_clicks_that_retention_took_are_counted(log: Log) -> None:
    log.append(POSITION_KEY, position(5))
    log.input = (40, 90)
    _, found, n_lost = await run(FakeDelivery())
    assert (found.next_offset, found.watermark_ms, n_lost) == (40, 77, 35)


@pytest.mark.parametrize(
    ("owner", "committed", "n_warnings"), [(FORMER, 5, 0), (FORMER, 2, 1), ("", 2, 0)]
)
async def test_an_offset_that_somebody_has_moved_is_not_passed_over_without_a_word(
    log: Log, owner: str, committed: int, n_warnings: int
) -> None:
    log.append(POSITION_KEY, position(5, owner))
    log.committed.append({0: committed})
    with capture_logs() as logged:
        _, found, _ = await run(FakeDelivery())
    assert found.next_offset == 5
    warnings = [line for line in logged if line["event"] == "group_offset_ignored"]
    assert len(warnings) == n_warnings
    assert all((w["group_offset"], w["position"]) == (2, 5) for w in warnings)


async def test_a_position_that_is_gone_where_there_are_sessions_holds_up_its_partition(
    log: Log,
) -> None:
    log.append(b"a", b"1")
    log.committed.append({0: 7})
    delivery = FakeDelivery()
    with pytest.raises(PartitionError, match="offset 7: the position was lost; choose") as refused:
        await run(delivery)
    assert refused.value.partitions == {0}
    assert not delivery.calls


async def test_a_position_where_an_operator_must_decide_is_refused(log: Log) -> None:
    log.committed.append({0: 7})
    with pytest.raises(StreamError, match="log has no position for in-0, but the group g has com"):
        await run(FakeDelivery())
    log.append(POSITION_KEY, position(5))
    with pytest.raises(
        StreamError, match="in has topic id other, but the stored position of in-0 belongs "
    ):
        await run(FakeDelivery(), topic_id="other")
    log.input = (0, 4)
    with pytest.raises(
        StreamError, match="the stored position of in-0 is 5, past the topic's end at 4"
    ):
        await run(FakeDelivery())
