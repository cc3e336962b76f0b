"""A worker with a guard taken out, so that a fault test can show that the guard matters.

``python -m bench.faults.worker_without GUARD [GUARD ...] -- worker``; the guards of the
second group are intact there: they only place the fault.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from stream import __main__ as command
from stream import worker
from stream.session import PartitionSessions
from stream.transport import restore, transactions
from stream.transport.faust_app import FaustTransport
from stream.transport.restore import Restore
from stream.transport.transactions import Delivery, Membership, TransactionalProducer


def no_position_record() -> None:
    """Begin where a consumer without offsets begins."""
    read = Restore._read

    def read_without_positions(self: Any, *arguments: Any) -> None:
        read(self, *arguments)
        for position in self._positions.values():
            position.next_offset = 0

    Restore._read = read_without_positions  # type: ignore[method-assign]


def no_generation() -> None:
    """Commit offsets as a consumer without a group does, which the broker does not fence."""
    attempt = transactions.TxnOffsetCommit

    def unfenced(*fields: Any) -> Any:
        return attempt(*fields[:4], -1, "", *fields[6:])

    transactions.TxnOffsetCommit = unfenced  # type: ignore[misc,assignment]
    FaustTransport._membership = lambda self: Membership(0, "-")  # type: ignore[method-assign]


def no_settling() -> None:
    """Restore without waiting for a former owner's transaction or fencing it."""

    async def settle(self: Any, owner: str, end: Any) -> dict[int, int]:
        return {}

    async def no_fence(self: Any, transactional_ids: Any) -> None:
        return None

    restore.Restore._settle = settle  # type: ignore[method-assign]
    Delivery.fence = no_fence  # type: ignore[method-assign]


def no_abort() -> None:
    """Leave a transaction that hangs to whatever ends it."""

    async def abort_hanging(self: Any, transactional_ids: Any, partitions: Any) -> None:
        return None

    Delivery.abort_hanging = abort_hanging  # type: ignore[method-assign]


def no_restore() -> None:
    """Take the positions from the changelog and leave the sessions there."""

    def positions_only(self: Any, key: bytes, value: bytes | None) -> None:
        return None

    PartitionSessions.restore = positions_only  # type: ignore[method-assign]


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


def slow_revocation() -> None:
    """Take three seconds for the batch that a revocation finds under way: no guard is out.

    There nearly always is one, since every batch takes a while.
    """
    on_revoked, commit = FaustTransport.on_revoked, Delivery.commit
    n_revocations = 0

    async def note(self: Any, partitions: Any, *, lost: bool) -> None:
        nonlocal n_revocations
        n_revocations += bool(partitions)
        await on_revoked(self, partitions, lost=lost)

    async def commit_slowly(self: Any, transaction: Any) -> None:
        before = n_revocations
        await asyncio.sleep(0.2)
        if n_revocations > before:
            await asyncio.sleep(3)
        await commit(self, transaction)

    FaustTransport.on_revoked = note  # type: ignore[method-assign]
    Delivery.commit = commit_slowly  # type: ignore[method-assign]


def sleep_before(step: str) -> Callable[[], None]:
    """SIGSTOP itself in its tenth transaction: no guard is out."""

    def install() -> None:
        original = getattr(TransactionalProducer, step)
        n_calls = 0

        async def stop_first(self: Any, *arguments: Any) -> None:
            nonlocal n_calls
            n_calls += 1
            if n_calls == 10:
                os.kill(os.getpid(), signal.SIGSTOP)
            await original(self, *arguments)

        setattr(TransactionalProducer, step, stop_first)

    return install


GUARDS = {
    "no_position_record": no_position_record,
    "no_generation": no_generation,
    "no_settling": no_settling,
    "no_abort": no_abort,
    "no_restore": no_restore,
    "no_hole_check": no_hole_check,
    "no_drain": no_drain,
    "slow_revocation": slow_revocation,
    "sleep_before_offsets": sleep_before("send_offsets"),
    "sleep_before_records": sleep_before("send_records"),
}


def main() -> int:
    words = sys.argv[1:]
    split = words.index("--")
    for word in words[:split]:
        GUARDS[word]()
    return command.main(words[split + 1 :])


if __name__ == "__main__":
    sys.exit(main())
