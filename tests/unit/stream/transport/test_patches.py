"""The patches fit one version of each package; that each is needed is shown on a real broker."""

from collections.abc import Awaitable, Callable
from importlib import metadata
from inspect import signature
from typing import Any

import aiokafka.producer.sender
import pytest
from aiokafka.client import CoordinationType
from aiokafka.errors import KafkaConnectionError, KafkaError, UnknownError
from aiokafka.producer.sender import Sender
from faust.sensors.monitor import Monitor
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP
from stream.transport.patches import PATCHES, WRITTEN_FOR, LeanMonitor, install_patches

from stream.errors import StreamError
from stream.transport import patches as faust_patches

# Called with fakes for their objects.
consumer_class: Any = Consumer
recovery_class: Any = Recovery
thread_class: Any = AIOKafkaConsumerThread
PATCHED = (
    (Consumer, "on_partitions_revoked"),
    (Consumer, "perform_seek"),
    (Recovery, "on_recovery_completed"),
    (Recovery, "_build_highwaters"),
    (AIOKafkaConsumerThread, "_create_worker_consumer"),
    (aiokafka.producer.sender, "BACKOFF_OVERRIDE"),
    (Sender, "_find_coordinator"),
)


@pytest.fixture(autouse=True)
def _unpatched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test patches is as it was afterwards."""
    for owner, name in PATCHED:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(aiokafka.producer.sender, "BACKOFF_OVERRIDE", 0.02)


def test_the_installed_versions_are_those_the_patches_are_written_for() -> None:
    assert {package: metadata.version(package) for package in WRITTEN_FOR} == WRITTEN_FOR


@pytest.mark.parametrize("package", WRITTEN_FOR)
def test_another_version_of_a_patched_package_is_refused_before_anything_is_patched(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        return "9.9.9" if name == package else WRITTEN_FOR[name]

    before = [getattr(owner, name) for owner, name in PATCHED]
    monkeypatch.setattr(faust_patches, "version", version)
    with pytest.raises(StreamError) as refusal:
        install_patches()
    assert str(refusal.value) == (
        f"{package} 9.9.9 is installed; the patches in stream/transport/patches.py are written for "
        f"{WRITTEN_FOR[package]}"
    )
    assert [getattr(owner, name) for owner, name in PATCHED] == before


def test_every_patch_changes_something_and_together_they_change_what_is_listed() -> None:
    for patch in PATCHES:
        before = [getattr(owner, name) for owner, name in PATCHED]
        patch()
        assert [getattr(owner, name) for owner, name in PATCHED] != before


class Recorder:
    """Stands for a Faust object: every method notes its name, and may be awaited or not."""

    def __init__(self, calls: list[str], **attributes: Any) -> None:
        self._calls = calls
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
        def method(*_: Any) -> Awaitable[None]:
            self._calls.append(name)
            return Nothing()

        return method


class Nothing:
    """An awaitable that may also be dropped, unlike a coroutine."""

    def __await__(self) -> Any:
        return iter(())


def original(calls: list[str]) -> Callable[..., Awaitable[None]]:
    async def method(self: Any, *_: Any) -> None:
        calls.append("faust's own")

    return method


async def test_acks_are_committed_before_faust_forgets_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Consumer, "on_partitions_revoked", original(calls))
    faust_patches.commit_before_revoke()
    app = Recorder(calls, should_stop=False, flow_control=Recorder(calls))
    await consumer_class.on_partitions_revoked(Recorder(calls, app=app), {TP("clicks", 0)})
    assert calls == ["stop_flow", "suspend", "clear", "wait_empty", "faust's own"]


@pytest.mark.parametrize(("should_stop", "revoked"), [(True, {TP("clicks", 0)}), (False, set())])
async def test_a_worker_that_stops_or_loses_nothing_does_not_wait_for_acks(
    should_stop: bool, revoked: set[TP], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Consumer, "on_partitions_revoked", original(calls))
    faust_patches.commit_before_revoke()
    app = Recorder(calls, should_stop=should_stop, flow_control=Recorder(calls))
    await consumer_class.on_partitions_revoked(Recorder(calls, app=app), revoked)
    assert calls == ["faust's own"]


async def test_our_restore_runs_with_the_flow_stopped_and_before_faust_resumes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Recovery, "on_recovery_completed", original(calls))
    faust_patches.restore_before_resume()
    app = Recorder(calls, consumer=Recorder(calls), flow_control=Recorder(calls))
    await recovery_class.on_recovery_completed(Recorder(calls, app=app), 7)
    assert calls == ["stop_flow", "suspend", "restore", "faust's own"]


async def test_faust_believes_that_every_changelog_partition_is_restored() -> None:
    faust_patches.leave_the_changelog_alone()
    highwaters = {TP("old", 0): 5}
    tps = {TP("changelog", 0), TP("changelog", 1)}
    await recovery_class._build_highwaters(None, None, tps, highwaters, "active")
    assert highwaters == dict.fromkeys(tps, -1)


async def test_clicks_go_on_at_the_positions_of_assigned_partitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    sought: list[dict[TP, int]] = []
    monkeypatch.setattr(Consumer, "perform_seek", original(calls))
    faust_patches.seek_to_positions()
    ours, lost, unrestored = TP("clicks", 0), TP("clicks", 1), TP("clicks", 2)

    class FakeConsumer:
        app = Recorder(calls, positions=lambda: {ours: 41, lost: 3})

        def __init__(self) -> None:
            self._committed_offset = {ours: 7, unrestored: 9}

        def assignment(self) -> set[TP]:
            return {ours, unrestored}

        async def seek_wait(self, positions: dict[TP, int]) -> None:
            assert calls == ["faust's own"], "ours comes last, or the group's offset wins"
            sought.append(positions)

    consumer = FakeConsumer()
    await consumer_class.perform_seek(consumer)
    assert sought == [{ours: 41}]
    assert consumer._committed_offset == {ours: 41, unrestored: 9}


def test_clicks_are_read_committed_and_no_fetch_waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(self: Any, transport: Any) -> Any:
        return Recorder(
            [],
            _isolation_level="read_uncommitted",
            _fetch_max_wait_ms=1500,
            _fetch_min_bytes=1,
        )

    monkeypatch.setattr(AIOKafkaConsumerThread, "_create_worker_consumer", create)
    faust_patches.fetch_committed_clicks_soon()
    consumer = thread_class._create_worker_consumer(None, None)
    assert (consumer._isolation_level, consumer._fetch_max_wait_ms) == ("read_committed", 5)


def test_the_attributes_that_the_fetch_patch_sets_are_aiokafkas() -> None:
    names = aiokafka.AIOKafkaConsumer.__init__.__code__.co_names
    assert {"_isolation_level", "_fetch_max_wait_ms"} <= set(names)


def test_a_transaction_is_tried_again_after_1_ms() -> None:
    faust_patches.retry_transactions_soon()
    assert aiokafka.producer.sender.BACKOFF_OVERRIDE == 0.001


@pytest.mark.parametrize("then", ["found", "refused"])
async def test_a_coordinator_is_looked_for_until_a_connection_holds(then: str) -> None:
    """What aiokafka makes of the two errors is its own code; only its lookup is a fake."""
    faust_patches.look_for_the_coordinator_again()
    asked: list[str] = []

    class Client:
        async def coordinator_lookup(self, kind: int, key: str) -> int:
            asked.append(key)
            if len(asked) <= 2:
                raise KafkaConnectionError("Connection at 127.0.0.1:9092 closed")
            if then == "refused":
                raise UnknownError
            return 7

        async def ready(self, node: int, group: Any) -> bool:
            return node == 7

    sender: Any = Sender(
        Client(),
        acks=-1,
        txn_manager=object(),
        message_accumulator=None,
        retry_backoff_ms=0,
        request_timeout_ms=0,
    )
    found = sender._find_coordinator(CoordinationType.TRANSACTION, "app-0")
    if then == "found":
        assert await found == 7
    else:
        with pytest.raises(KafkaError, match="UnknownError"):
            await found
    assert asked == ["app-0"] * 3


@pytest.mark.parametrize(
    "name", [name for name in vars(LeanMonitor) if name.startswith(("on_", "track_"))]
)
def test_the_lean_monitor_leaves_out_methods_that_fausts_monitor_has(name: str) -> None:
    assert list(signature(getattr(LeanMonitor, name)).parameters) == list(
        signature(getattr(Monitor, name)).parameters
    )
