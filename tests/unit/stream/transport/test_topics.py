"""What `topics check` makes of the topics it finds; against a real broker in integration."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from structlog.testing import capture_logs

from stream.errors import StreamError
from stream.settings import KafkaSettings, Wiring
from stream.transport import topics
from stream.transport.topics import TopicIds, check_all_topics, check_topics, n_partitions

RIGHT: dict[str, dict[str, str]] = {
    "clicks": {
        "cleanup.policy": "delete",
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": "1000",
    },
    "recommendations": {"cleanup.policy": "delete", "max.message.bytes": "1000000"},
    "clicks-dead-letter": {"cleanup.policy": "delete", "max.message.bytes": "66536"},
    "nextclick-sessions-changelog": {
        "cleanup.policy": "compact",
        "max.message.bytes": "1000000",
    },
}
CHANGELOG = "nextclick-sessions-changelog"
EVENTS, VIEW, ITEMS = "nextclick-item-events", "nextclick-item-view", "nextclick-items-changelog"
RIGHT_ITEMS: dict[str, dict[str, str]] = {
    name: {"cleanup.policy": policy, "max.message.bytes": "1000000"}
    for name, policy in {EVENTS: "delete", VIEW: "compact", ITEMS: "compact"}.items()
}
RIGHT_ITEMS[EVENTS]["message.timestamp.type"] = "LogAppendTime"


class Broker:
    """What a broker would answer: partitions and configuration of the topics it has."""

    def __init__(self) -> None:
        self.partitions = dict.fromkeys(RIGHT, 4)
        self.config = {
            name: config | {"min.insync.replicas": "1"} for name, config in RIGHT.items()
        }
        self.n_brokers, self.replicas = 1, dict.fromkeys(RIGHT, 1)

    def add_items(self) -> None:
        """The topics of the item processor, with partitions of their own number."""
        self.partitions |= {EVENTS: 7, VIEW: 2, ITEMS: 7}
        for name, config in RIGHT_ITEMS.items():
            self.config[name] = config | {"min.insync.replicas": "1"}
            self.replicas[name] = 1


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    fake = Broker()

    def configs(admin: Any, names: tuple[str, ...]) -> dict[str, dict[str, str]]:
        return {name: fake.config[name] for name in names}

    monkeypatch.setattr(topics, "AdminClient", lambda options: None)
    monkeypatch.setattr(topics, "_existing", lambda admin, settings: fake.partitions)
    monkeypatch.setattr(topics, "_configs", configs)
    monkeypatch.setattr(topics, "_replicas", lambda admin, names: (fake.n_brokers, fake.replicas))
    monkeypatch.setattr(topics, "topic_id", lambda admin, topic: f"the-id of {topic}")
    return fake


def wrong(**settings: Any) -> str:
    with pytest.raises(StreamError) as refusal:
        check_topics(KafkaSettings(**settings))
    return str(refusal.value)


def test_topics_that_are_right_give_the_id_of_the_clicks(broker: Broker) -> None:
    broker.partitions |= {"recommendations": 3, "clicks-dead-letter": 1}
    assert check_topics(KafkaSettings()) == "the-id of clicks"


def test_partitions_are_counted_by_topic_and_missing_topics_are_named(broker: Broker) -> None:
    broker.partitions["recommendations"] = 3
    names = ["recommendations", "clicks"]
    assert n_partitions(KafkaSettings(), names) == {"recommendations": 3, "clicks": 4}
    with pytest.raises(StreamError, match="missing topics: a, b; "):
        n_partitions(KafkaSettings(), ["a", "clicks", "b"])


def test_missing_topics_are_all_named_with_the_command_that_makes_them(broker: Broker) -> None:
    del broker.partitions["clicks"], broker.partitions[CHANGELOG]
    assert wrong() == (
        f"missing topics: clicks, {CHANGELOG}; `python -m stream topics create` creates them"
    )


@pytest.mark.parametrize(
    ("topic", "key", "value", "sentence"),
    [
        (
            CHANGELOG,
            "cleanup.policy",
            "compact,delete",
            f"{CHANGELOG} has cleanup.policy=compact,delete, expected compact only "
            "(retention would delete the position)",
        ),
        (
            "clicks",
            "message.timestamp.type",
            "CreateTime",
            "clicks has message.timestamp.type=CreateTime, expected LogAppendTime "
            "(latency is measured from it)",
        ),
        (
            "clicks-dead-letter",
            "cleanup.policy",
            "compact,delete",
            "clicks-dead-letter has cleanup.policy=compact,delete, expected delete "
            "(compaction keeps one record per session, and rejects records without a key)",
        ),
        (
            "recommendations",
            "max.message.bytes",
            "999999",
            "recommendations has max.message.bytes=999999, expected at least 1000000, "
            "the most that a worker's batch may need",
        ),
        (
            "clicks-dead-letter",
            "max.message.bytes",
            "66535",
            "clicks-dead-letter has max.message.bytes=66535, expected at least 66536, "
            "64 KiB more than clicks",
        ),
    ],
)
def test_a_wrong_configuration_is_named_with_found_and_expected(
    topic: str, key: str, value: str, sentence: str, broker: Broker
) -> None:
    broker.config[topic][key] = value
    assert wrong() == sentence


def test_the_changelog_has_as_many_partitions_as_the_clicks(broker: Broker) -> None:
    broker.partitions[CHANGELOG] = 5
    assert wrong() == f"{CHANGELOG} has 5 partitions, clicks has 4: they must be equal"


def test_a_topic_that_nothing_can_be_written_to_is_named(broker: Broker) -> None:
    broker.config["recommendations"]["min.insync.replicas"] = "2"
    assert wrong() == (
        "recommendations has min.insync.replicas=2, expected at most 1, its number of replicas; "
        "otherwise nothing can be written to it"
    )


def test_topics_that_a_lost_broker_would_hurt_are_told(broker: Broker) -> None:
    with capture_logs() as logged:
        check_topics(KafkaSettings())
    assert not logged, "there is nowhere else to put replicas"
    broker.n_brokers, broker.replicas = 3, dict.fromkeys(RIGHT, 3)
    for name in ("clicks", "recommendations"):
        broker.config[name]["min.insync.replicas"] = "2"
    broker.replicas["clicks"] = 2
    with capture_logs() as logged:
        check_topics(KafkaSettings())
    told = {(w["topic"], w["replicas"], w["min_insync_replicas"]) for w in logged}
    assert told == {("clicks", 2, 2), ("clicks-dead-letter", 3, 1), (CHANGELOG, 3, 1)}


def test_everything_that_is_wrong_is_said_at_once(broker: Broker) -> None:
    broker.partitions[CHANGELOG] = 5
    broker.config["clicks"]["message.timestamp.type"] = "CreateTime"
    assert wrong().count(";") == 1


def test_the_topics_are_those_of_the_settings(broker: Broker) -> None:
    names = {
        "clicks": "c",
        "recommendations": "r",
        "clicks-dead-letter": "d",
        CHANGELOG: "app-sessions-changelog",
    }
    broker.partitions = {names[name]: n for name, n in broker.partitions.items()}
    broker.config = {names[name]: config for name, config in broker.config.items()}
    broker.replicas = dict.fromkeys(names.values(), 1)
    found = check_topics(
        KafkaSettings(
            app_id="app", clicks_topic="c", recommendations_topic="r", dead_letter_topic="d"
        )
    )
    assert found == "the-id of c"


def test_a_deployment_without_item_topics_is_right_and_they_are_named(broker: Broker) -> None:
    assert check_all_topics(KafkaSettings()) == (EVENTS, VIEW, ITEMS)
    broker.add_items()
    assert check_all_topics(KafkaSettings()) == ()


@pytest.mark.parametrize(
    ("topic", "policy", "sentence"),
    [
        (EVENTS, "compact", f"{EVENTS} has cleanup.policy=compact, expected delete ("),
        (VIEW, "delete", f"{VIEW} has cleanup.policy=delete, expected compact only ("),
        (ITEMS, "compact,delete", f"{ITEMS} has cleanup.policy=compact,delete, expected compact"),
    ],
)
def test_what_is_wrong_with_item_topics_is_said_beside_the_rest(
    topic: str, policy: str, sentence: str, broker: Broker
) -> None:
    broker.add_items()
    broker.partitions |= {CHANGELOG: 5, ITEMS: 4}
    broker.config[topic]["cleanup.policy"] = policy
    broker.config[EVENTS]["message.timestamp.type"] = "CreateTime"
    with pytest.raises(StreamError) as refusal:
        check_all_topics(KafkaSettings())
    told = str(refusal.value)
    assert sentence in told
    assert f"{EVENTS} has message.timestamp.type=CreateTime, expected LogAppendTime (what" in told
    assert f"{CHANGELOG} has 5 partitions, clicks has 4: they must be equal" in told
    assert f"{ITEMS} has 4 partitions, {EVENTS} has 7: they must be equal" in told


@pytest.mark.parametrize("there", [EVENTS, VIEW, ITEMS])
def test_an_item_topic_that_is_missing_beside_others_is_named(there: str, broker: Broker) -> None:
    broker.add_items()
    missing = [name for name in (EVENTS, VIEW, ITEMS) if name != there]
    for name in missing:
        del broker.partitions[name]
    with pytest.raises(StreamError, match=f"missing topics: {', '.join(missing)}; "):
        check_all_topics(KafkaSettings())


async def test_another_id_is_told_and_a_topic_that_nobody_knows_at_the_moment_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids: dict[str, str | None] = {"clicks": "a", "log": None}

    def describe(names: TopicCollection, request_timeout: float) -> dict[str, Future[Any]]:
        found: dict[str, Future[Any]] = {name: Future() for name in ids}
        for name, future in found.items():
            if ids[name] is None:
                error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
                future.set_exception(KafkaException(error))
            else:
                future.set_result(SimpleNamespace(topic_id=ids[name]))
        return found

    admin = SimpleNamespace(describe_topics=describe)
    monkeypatch.setattr(topics, "AdminClient", lambda options: admin)
    watched = TopicIds(KafkaSettings(), Wiring("g", "clicks", "log", {}))
    await watched.look()
    ids |= {"clicks": None, "log": "b"}
    await watched.look()
    ids["clicks"] = "a"
    await watched.look()
    ids["log"] = "c"
    with pytest.raises(StreamError, match=r"log has topic id c, and had b when .* recreated"):
        await watched.look()
