"""The topics: made right, or told what is wrong with them (`topics create|check`)."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

import structlog
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its __init__ has no __all__
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from stream.errors import StreamError
from stream.settings import KafkaSettings, TopicsSettings, Wiring
from stream.transport.clients import BATCH_BYTES, confluent_options

log = structlog.get_logger(__name__)

TIMEOUT_S = 20
POLL_S = 0.1
_LOOK_S = 1.5
_NOT_SETTLED = (
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    KafkaError._TIMED_OUT,
    KafkaError._WAIT_COORD,
)


class BrokerUnreachableError(StreamError):
    """No broker answers."""


DEAD_LETTER_EXTRA_BYTES = 65_536
"""What a dead letter's headers may add to the click it keeps."""
_REPLICAS, _IN_SYNC = 3, {"min.insync.replicas": "2"}
"""With which one lost broker loses nothing and stops nothing."""
_CHANGELOG_CONFIG = {
    # compact only: retention would delete the position record of a partition without clicks.
    "cleanup.policy": "compact",
    # Small segments, since the active one is never compacted: a restore reads all of it.
    "segment.ms": "120000",
    "segment.bytes": "67108864",
    "max.compaction.lag.ms": "600000",
    # A restore takes less: longer than that, nobody has read a session and not its end.
    "delete.retention.ms": "300000",
    "min.cleanable.dirty.ratio": "0.2",
}


_COMPACT = "compact only (retention would delete the position)"
_COMPACT_VIEW = "compact only (retention would delete items that are seldom clicked)"
_DELETE = "delete (compaction keeps one record per session, and rejects records without a key)"


def create_topics(settings: TopicsSettings) -> list[str]:
    """Make the topics that are missing; returns their names. Existing ones are left alone.

    An existing clicks topic decides the number of partitions: they belong to its producers. An
    existing topic of item events decides its changelog's.
    """
    size = {"max.message.bytes": str(settings.max_message_bytes)}
    wanted = {
        # The append time is what latency is counted from, and no producer's clock can forge it.
        settings.clicks_topic: {"message.timestamp.type": "LogAppendTime"} | size,
        settings.recommendations_topic: {"message.timestamp.type": "LogAppendTime"},
        settings.dead_letter_topic: {
            "cleanup.policy": "delete",
            "max.message.bytes": str(settings.max_message_bytes + DEAD_LETTER_EXTRA_BYTES),
            # Clicks that came compressed go there plain: 410 kB of gzip were 400 MB of letters.
            "compression.type": "zstd",
        },
        settings.changelog_topic: _CHANGELOG_CONFIG,
        settings.item_events_topic: {
            "cleanup.policy": "delete",
            # A worker's clock may be slow: its events would be from the future.
            "message.timestamp.type": "LogAppendTime",
            # It is read within a second; a day is for who looks into a fault.
            "retention.ms": "86400000",
        },
        settings.item_view_topic: _CHANGELOG_CONFIG,
        settings.items_wiring.changelog: _CHANGELOG_CONFIG,
    }
    if settings.replication_factor >= _REPLICAS:
        wanted = {name: config | _IN_SYNC for name, config in wanted.items()}
    admin = AdminClient(confluent_options(settings))
    existing = _existing(admin, settings)
    partitions = dict.fromkeys(wanted, existing.get(settings.clicks_topic, settings.partitions))
    items = settings.items_wiring
    partitions[items.changelog] = existing.get(items.input, partitions[items.input])
    missing = [
        NewTopic(name, partitions[name], settings.replication_factor, config=config)
        for name, config in wanted.items()
        if name not in existing
    ]
    if missing:
        for name, future in admin.create_topics(missing, operation_timeout=TIMEOUT_S).items():
            try:
                future.result(TIMEOUT_S)
            except KafkaException as error:
                why = error.args[0].str()
                raise StreamError(f"topic {name} cannot be created: {why}") from error
    names = [topic.topic for topic in missing]
    _wait_until_known(admin, settings, names)
    return names


def check_topics(settings: KafkaSettings) -> str:
    """Return the id of the clicks topic. Raises StreamError with everything that is wrong."""
    look = _Look(settings, _click_topics(settings))
    look.expect_clicks(settings)
    look.raise_wrong()
    return look.topic_id(settings.clicks_topic)


def check_item_topics(settings: KafkaSettings) -> str:
    """Return the id of the item-events topic. Raises StreamError with everything that is wrong."""
    look = _Look(settings, _item_topics(settings))
    look.expect_items(settings)
    look.raise_wrong()
    return look.topic_id(settings.item_events_topic)


def check_all_topics(settings: KafkaSettings) -> tuple[str, ...]:
    """Check the topics of both processors; returns the item topics where none of them exists.

    That is no fault, since a bundle that is not live needs none. Raises StreamError with everything
    that is wrong; one item topic that is missing beside others is.
    """
    items = _item_topics(settings)
    existing = _existing(AdminClient(confluent_options(settings)), settings)
    has_items = any(name in existing for name in items)
    look = _Look(settings, _click_topics(settings) + (items if has_items else ()))
    look.expect_clicks(settings)
    if has_items:
        look.expect_items(settings)
    look.raise_wrong()
    return () if has_items else items


def _click_topics(settings: KafkaSettings) -> tuple[str, ...]:
    return (
        settings.clicks_topic,
        settings.recommendations_topic,
        settings.dead_letter_topic,
        settings.changelog_topic,
    )


def _item_topics(settings: KafkaSettings) -> tuple[str, ...]:
    wiring = settings.items_wiring
    return wiring.input, settings.item_view_topic, wiring.changelog


class _Look:
    """A look at topics, and what it finds wrong with them."""

    def __init__(self, settings: KafkaSettings, names: tuple[str, ...]) -> None:
        self._names = names
        self._admin = AdminClient(confluent_options(settings))
        self.partitions = n_partitions(settings, names)
        self.config = _configs(self._admin, names)
        self._wrong: list[str] = []

    def expect_clicks(self, settings: KafkaSettings) -> None:
        clicks, recommendations, dead_letter, changelog = _click_topics(settings)
        least_bytes = int(self.config[clicks]["max.message.bytes"]) + DEAD_LETTER_EXTRA_BYTES
        larger = f"at least {least_bytes}, 64 KiB more than {clicks}"
        for topic in (clicks, recommendations, dead_letter):
            self.expect(topic, "cleanup.policy", lambda policy: "compact" not in policy, _DELETE)
        self.expect(changelog, "cleanup.policy", lambda policy: policy == "compact", _COMPACT)
        self.expect_append_time(clicks, "latency is measured from it")
        self.expect(dead_letter, "max.message.bytes", lambda size: int(size) >= least_bytes, larger)
        self.expect_batches(recommendations, changelog)
        self.expect_as_many(changelog, clicks)

    def expect_items(self, settings: KafkaSettings) -> None:
        events, view, changelog = _item_topics(settings)
        self.expect_append_time(events, "what clicks teach is no later than that")
        self.expect(events, "cleanup.policy", lambda policy: "compact" not in policy, _DELETE)
        self.expect(changelog, "cleanup.policy", lambda policy: policy == "compact", _COMPACT)
        self.expect(view, "cleanup.policy", lambda policy: policy == "compact", _COMPACT_VIEW)
        self.expect_batches(events, view, changelog)
        self.expect_as_many(changelog, events)

    def expect(self, topic: str, key: str, is_right: Callable[[str], bool], expected: str) -> None:
        found = self.config[topic][key]
        if not is_right(found):
            self._wrong.append(f"{topic} has {key}={found}, expected {expected}")

    def expect_append_time(self, topic: str, why: str) -> None:
        kind = "message.timestamp.type"
        append_time = "LogAppendTime"
        self.expect(topic, kind, lambda found: found == append_time, f"{append_time} ({why})")

    def expect_batches(self, *topics: str) -> None:
        expected = f"at least {BATCH_BYTES}, the most that a worker's batch may need"
        for topic in topics:
            self.expect(topic, "max.message.bytes", lambda size: int(size) >= BATCH_BYTES, expected)

    def expect_as_many(self, changelog: str, topic: str) -> None:
        if self.partitions[changelog] != self.partitions[topic]:
            self._wrong.append(
                f"{changelog} has {self.partitions[changelog]} partitions, "
                f"{topic} has {self.partitions[topic]}: they must be equal"
            )

    def raise_wrong(self) -> None:
        """Raise StreamError with all that is wrong, replicas among it."""
        n_brokers, replicas = _replicas(self._admin, self._names)
        for name in self._names:
            in_sync = int(self.config[name]["min.insync.replicas"])
            if in_sync > replicas[name]:
                self._wrong.append(
                    f"{name} has min.insync.replicas={in_sync}, expected at most {replicas[name]}, "
                    "its number of replicas; otherwise nothing can be written to it"
                )
            elif n_brokers > 1 and (replicas[name] < min(_REPLICAS, n_brokers) or in_sync < 2):
                expected = (
                    "3 replicas and min.insync.replicas=2, so that no lost broker loses records"
                )
                found = {"replicas": replicas[name], "min_insync_replicas": in_sync}
                log.warning("weak_replication", topic=name, **found, expected=expected)
        if self._wrong:
            raise StreamError("; ".join(self._wrong))

    def topic_id(self, topic: str) -> str:
        return topic_id(self._admin, topic)


def largest_click(settings: KafkaSettings) -> int:
    """Return the clicks topic's max.message.bytes: the dead-letter topic takes so much, and more.

    To Kafka it limits what is sent; compressed, a thousand times as much may be in it.
    """
    config = _configs(AdminClient(confluent_options(settings)), (settings.clicks_topic,))
    return int(config[settings.clicks_topic]["max.message.bytes"])


def group_offsets(
    settings: KafkaSettings, wiring: Wiring, partitions: Iterable[int], timeout_s: float
) -> dict[int, int] | None:
    """Return what the group has committed of the input, by partition; None: not settled in time.

    An offset in an open transaction is not settled, nor are those of a broker that loads its
    groups. By a consumer that joins nothing: the admin client's list_consumer_group_offsets ends
    the process (SIGSEGV) where a broker answers NOT_COORDINATOR (librdkafka issue 5040).
    """
    consumer = Consumer(
        confluent_options(settings) | {"group.id": wiring.group_id, "enable.auto.commit": False}
    )
    wanted = [TopicPartition(wiring.input, p) for p in partitions]
    try:
        found = consumer.committed(wanted, timeout_s)
    except KafkaException as error:
        if error.args[0].code() in _NOT_SETTLED:
            return None
        raise
    finally:
        consumer.close()
    return {tp.partition: tp.offset for tp in found if tp.offset >= 0}


def _wait_until_known(admin: AdminClient, settings: KafkaSettings, names: list[str]) -> None:
    """The controller answers before its brokers know of a topic: a busy one takes a second."""
    deadline = time.monotonic() + TIMEOUT_S
    while unknown := [name for name in names if name not in _existing(admin, settings)]:
        if time.monotonic() > deadline:
            raise StreamError(
                f"topics {', '.join(unknown)} were created, but the brokers do not list them yet; "
                "try again"
            )
        time.sleep(POLL_S)


def n_partitions(settings: KafkaSettings, names: Sequence[str]) -> dict[str, int]:
    """Return the number of partitions of each topic. Raises StreamError if any is missing."""
    topics = _existing(AdminClient(confluent_options(settings)), settings)
    if missing := [name for name in names if name not in topics]:
        raise StreamError(
            f"missing topics: {', '.join(missing)}; `python -m stream topics create` creates them"
        )
    return {name: topics[name] for name in names}


def chosen_partitions(settings: KafkaSettings, topic: str, only: int | None) -> range:
    """Return the partitions of a topic, or one. Raises StreamError if that is none."""
    (n_found,) = n_partitions(settings, [topic]).values()
    if only is None:
        return range(n_found)
    if only >= n_found:
        raise StreamError(
            f"there is no partition {only}: {topic} has partitions 0 to {n_found - 1}"
        )
    return range(only, only + 1)


def _existing(admin: AdminClient, settings: KafkaSettings) -> dict[str, int]:
    try:
        topics = admin.list_topics(timeout=TIMEOUT_S).topics
    except KafkaException as error:
        servers, why = settings.bootstrap_servers, error.args[0].str()
        raise BrokerUnreachableError(f"no broker answers at {servers}: {why}") from error
    return {name: len(topic.partitions) for name, topic in topics.items()}


def _configs(admin: AdminClient, names: tuple[str, ...]) -> dict[str, dict[str, str]]:
    futures = admin.describe_configs([ConfigResource(ResourceType.TOPIC, n) for n in names])
    return {
        resource.name: {key: entry.value for key, entry in future.result(TIMEOUT_S).items()}
        for resource, future in futures.items()
    }


def _replicas(admin: AdminClient, names: Iterable[str]) -> tuple[int, dict[str, int]]:
    """How many brokers there are, and on how many each topic's first partition is."""
    found = admin.list_topics(timeout=TIMEOUT_S)
    replicas = {name: len(found.topics[name].partitions[0].replicas) for name in names}
    return len(found.brokers), replicas


class TopicIds:
    """Notices that topics were deleted and made anew under us, which their readers do not.

    librdkafka (2.16) fetches on at the old offset, if the new topic has come that far by then.
    """

    def __init__(self, settings: KafkaSettings, wiring: Wiring) -> None:
        self._admin = AdminClient(confluent_options(settings))
        self._topics = TopicCollection([wiring.input, wiring.changelog])
        self._choose = wiring.choose
        self._first: dict[str, str] = {}

    async def look(self) -> None:
        """Raises StreamError where a topic has another id than when it was first looked at.

        Brokers that do not answer in time, or know no such topic at the moment, say nothing.
        """
        found = self._admin.describe_topics(self._topics, request_timeout=_LOOK_S)
        for name, future in found.items():
            try:
                # Shielded: librdkafka's thread is to find no future that was cancelled.
                described = await asyncio.shield(asyncio.wrap_future(future))
            except KafkaException:
                continue
            now = str(described.topic_id)
            before = self._first.setdefault(name, now)
            if now != before:
                raise StreamError(
                    f"{name} has topic id {now}, and had {before} when this worker first looked: "
                    f"the topic was deleted and recreated; {self._choose}"
                )


def topic_id(admin: AdminClient, topic: str) -> str:
    """Return a topic's id: another one after it was deleted and made anew."""
    request = TopicCollection([topic])
    future = admin.describe_topics(request, request_timeout=TIMEOUT_S)[topic]
    return str(future.result(TIMEOUT_S).topic_id)
