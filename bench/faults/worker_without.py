"""A worker with a guard taken out, so that a fault test can show that the guard matters.

``python -m bench.faults.worker_without GUARD [GUARD ...] -- worker``. A guard is a row of GUARDS:
its name, the function that patches it away, and the fault that must reveal that it is gone.
"""

import asyncio
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import structlog

from stream import __main__ as command
from stream import worker
from stream.contract.click import ClickParser
from stream.errors import NewerFormatError
from stream.session import PartitionSessions
from stream.table import PartitionStates
from stream.transport import restore, transactions
from stream.transport.faust_app import FaustTransport
from stream.transport.group import Group
from stream.transport.protocol import Membership, Transaction
from stream.transport.reader import bounds
from stream.transport.restore import Changelog
from stream.transport.transactions import Delivery, TransactionalProducer
from stream.transport.wire import TxnOffsetCommit

log = structlog.get_logger(__name__)

SLOW_BATCH = "slow_batch_committed"
SLOW_S = 9.0
"""On a slow machine the next owner takes six to join, to restore and to process its first click."""


def no_position_record() -> None:
    """Begin where a consumer without offsets begins."""
    read_on = Changelog.read_on

    def read_without_positions(self: Any, **how: Any) -> None:
        read_on(self, **how)
        for position in self.positions.values():
            position.next_offset = 0

    Changelog.read_on = read_without_positions  # type: ignore[method-assign]


def no_generation() -> None:
    """Commit offsets as a consumer without a group does, which the broker does not fence."""

    def unfenced(*fields: Any) -> TxnOffsetCommit:
        return TxnOffsetCommit(*fields[:4], -1, "", *fields[6:])

    setattr(transactions, "TxnOffsetCommit", unfenced)  # noqa: B010  # mypy knows it as a class
    FaustTransport._membership = lambda self: Membership(0, "-")  # type: ignore[method-assign]


class _Unrefused(int):
    """A generation that no check finds too small."""

    def __lt__(self, other: object) -> bool:
        return False


def no_membership() -> None:
    """Commit while the group does not count us: with generation -1, which the broker lets pass."""
    membership = FaustTransport._membership

    def unrefused(self: Any) -> Membership:
        generation, member_id = membership(self)
        return Membership(_Unrefused(generation), member_id or "-")

    FaustTransport._membership = unrefused  # type: ignore[method-assign]


def no_settling() -> None:
    """Restore without waiting for a former owner's transaction or fencing it."""

    async def settle(self: Any, owner: str) -> dict[int, int]:
        return {}

    async def no_fence(self: Any, transactional_ids: Any) -> None:
        return None

    restore.Restore._settle = settle  # type: ignore[method-assign]
    Delivery.fence = no_fence  # type: ignore[method-assign]


def no_abort() -> None:
    """Leave a transaction that hangs to whatever ends it."""

    async def leave(self: Any, transactional_id: str, partitions: Any, *, commit: bool) -> None:
        return None

    Delivery.end_hanging = leave  # type: ignore[method-assign]


def no_restore() -> None:
    """Take the positions from the changelog and leave the states there."""

    def positions_only(self: Any, key: bytes, value: bytes | None) -> None:
        return None

    PartitionStates.restore = positions_only  # type: ignore[method-assign]


def no_uncommitted_end() -> None:
    """Restore up to where a reader is let, while the markers behind it are being written."""

    def stable_bounds(*arguments: Any) -> dict[int, tuple[int, int, int]]:
        found = bounds(*arguments)
        return {p: (begin, stable, stable) for p, (begin, stable, _) in found.items()}

    setattr(restore, "bounds", stable_bounds)  # noqa: B010  # mypy knows its arguments


def no_hole_check() -> None:
    """Trust that what is delivered is everything."""

    async def check_holes(self: Any, plan: Any) -> None:
        return None

    worker.Worker._check_holes = check_holes  # type: ignore[method-assign]


def no_drain() -> None:
    """Give partitions up while a batch of theirs is under way."""

    async def drained(self: Any) -> None:
        return None

    FaustTransport._drained = drained  # type: ignore[method-assign]
    Delivery.settled = drained  # type: ignore[method-assign]


def seek_to_the_beginning() -> None:
    """Let every click come again from the first one on: no guard is out."""
    start_at = Group._start_at

    def from_the_beginning(self: Any, offsets: Any) -> None:
        start_at(self, dict.fromkeys(offsets, 0))

    Group._start_at = from_the_beginning  # type: ignore[method-assign]


def slow_revocation() -> None:
    """Take ``SLOW_S`` for a batch that a revocation finds under way: no guard is out.

    A batch takes a while, and a revocation waits for the next one, so that it always finds one.
    """
    on_revoked, commit = FaustTransport.on_revoked, Delivery.commit
    n_revocations = 0
    begun = asyncio.Event()

    async def note(self: Any, partitions: Any, *, lost: bool) -> None:
        nonlocal n_revocations
        if partitions:
            with suppress(TimeoutError):  # nothing comes, so nothing can be under way
                await asyncio.wait_for(begun.wait(), 2)
            n_revocations += 1
        await on_revoked(self, partitions, lost=lost)

    async def commit_slowly(self: Any, transaction: Any) -> None:
        before = n_revocations
        begun.set()
        await asyncio.sleep(0.2)
        begun.clear()
        is_slow = n_revocations > before
        if is_slow:
            await asyncio.sleep(SLOW_S)
        await commit(self, transaction)
        if is_slow:
            log.warning(SLOW_BATCH)

    FaustTransport.on_revoked = note  # type: ignore[method-assign]
    Delivery.commit = commit_slowly  # type: ignore[method-assign]


def fail_at_poison() -> None:
    """Have a bug that one click in the topic meets: no guard is out."""
    parse = ClickParser.__call__

    def parse_or_fail(self: Any, record: Any) -> Any:
        if record.value == b"poison":
            raise ZeroDivisionError("a bug of ours")
        return parse(self, record)

    ClickParser.__call__ = parse_or_fail  # type: ignore[method-assign]


def former_state_format() -> None:
    """Write and read sessions in format 1, as the version before did: no guard is out."""
    restore, commit = PartitionSessions.restore, Delivery.commit

    def restore_former(self: Any, key: bytes, value: bytes | None) -> None:
        if value is not None and value[0] != 1:
            raise NewerFormatError(f"session state has format {value[0]}, but this version reads 1")
        restore(self, key, value)

    async def commit_former(self: Any, transaction: Transaction) -> None:
        former: defaultdict[int, dict[bytes, bytes | None]] = defaultdict(dict)
        for partition, changes in transaction.changelog.items():
            for key, raw in changes.items():
                # Format 1 has no seen_ms, the 8 bytes before last_click_ms.
                former[partition][key] = raw and b"".join((b"\x01", raw[1:10], raw[18:]))
        await commit(self, replace(transaction, changelog=former))

    PartitionSessions.restore = restore_former  # type: ignore[method-assign]
    Delivery.commit = commit_former  # type: ignore[method-assign]


def sleep_before(step: str) -> Callable[[], None]:
    """SIGSTOP itself in its tenth transaction: no guard is out."""

    def install() -> None:
        original = getattr(TransactionalProducer, step)
        n_calls = 0

        async def stop_first(self: Any, *arguments: Any, **options: Any) -> None:
            nonlocal n_calls
            n_calls += 1
            if n_calls == 10:
                os.kill(os.getpid(), signal.SIGSTOP)
            await original(self, *arguments, **options)

        setattr(TransactionalProducer, step, stop_first)

    return install


@dataclass(frozen=True)
class Guard:
    """``remove`` takes it out of a process; where all that the fault ``revealed_by`` strikes are
    without it, there must be harm."""

    remove: Callable[[], None]
    revealed_by: str


GUARDS = {
    "position": Guard(no_position_record, "kill"),
    "generation": Guard(no_generation, "pause"),
    "membership": Guard(no_membership, "pause"),
    "settling": Guard(no_settling, "pause"),
    "uncommitted_end": Guard(no_uncommitted_end, "kill"),
    "abort": Guard(no_abort, "broker_term"),
    "restore": Guard(no_restore, "term"),
    "holes": Guard(no_hole_check, "join"),
    "drain": Guard(no_drain, "join"),
    "position_items": Guard(no_position_record, "kill_items"),
    "restore_items": Guard(no_restore, "term_items"),
}
PLACES = {
    "seek_to_the_beginning": seek_to_the_beginning,
    "slow_revocation": slow_revocation,
    "fail_at_poison": fail_at_poison,
    "former_state_format": former_state_format,
    "sleep_before_offsets": sleep_before("send_offsets"),
    "sleep_before_records": sleep_before("send_records"),
    "sleep_before_end": sleep_before("end"),
}
"""What only makes a fault likely, or places it: every guard is intact."""


def main() -> int:
    words = sys.argv[1:]
    split = words.index("--")
    for word in words[:split]:
        if word in PLACES:
            PLACES[word]()
        else:
            GUARDS[word].remove()
    return command.main(words[split + 1 :])


if __name__ == "__main__":
    sys.exit(main())
