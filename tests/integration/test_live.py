"""What the stream teaches comes back in the lists, through real processes."""

import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from bench.faults.service import Deployment
from bench.faults.traffic import LOG_BEGIN_MS, click, produce
from bench.serving.bundles import write_tiny_bundle
from deploy.processes import wait_for
from stream.contract.items import ItemEvents, encode_events, head_of
from stream.contract.messages import Recommendation
from stream.live.rules import PREFIXES, Rules
from stream.model.bundle import Live
from stream.position import POSITION_KEY

SECOND_MS = 1000
RULES = Rules(3_600_000, 225_000, excludes_seen=False)
LIVE = Live(3600, 225, False, 20, 0.0, [[1.0] * (len(RULES.sources) + 1)] * PREFIXES)


@pytest.fixture
def live(kafka: str, fresh_name: Callable[[str], str], tmp_path: Path) -> Iterator[Deployment]:
    """As ``deployment``, with a bundle that learns from the stream."""
    bundle = write_tiny_bundle(tmp_path, n_items=50, hidden_size=8, k=20, live=LIVE)
    deployment = Deployment(kafka, fresh_name("app"), bundle, tmp_path)
    deployment.create_topics()
    yield deployment
    deployment.close()


def all_answers(deployment: Deployment) -> list[Recommendation]:
    found = deployment.read(deployment.recommendations)
    return [msgspec.json.decode(r.value or b"", type=Recommendation) for r in found]


def answers(deployment: Deployment, session: str) -> list[Recommendation]:
    return [answer for answer in all_answers(deployment) if answer.session_id == session]


def ask(deployment: Deployment, item: str, at_ms: int, n_sent: int) -> list[Recommendation]:
    """The answers to a click in each partition, so many milliseconds behind the beginning.

    n_sent: clicks before. The sessions are new ones.
    """
    sessions = [f"{at_ms}-{partition}" for partition in range(4)]
    for partition, session in enumerate(sessions):
        value = click(session, item, LOG_BEGIN_MS + at_ms)
        deployment.send([(session.encode(), value)], partition=partition)
    deployment.wait_until_answered(n_sent + 4)
    found = {answer.session_id: answer for answer in all_answers(deployment)}
    return [found[session] for session in sessions]


def n_counted(deployment: Deployment) -> dict[tuple[int, bytes | None], int]:
    """What the item processor keeps of each item, by its partition and name."""
    found: dict[tuple[int, bytes | None], int] = {}
    for record in deployment.read(deployment.items_changelog):
        if record.value is None:
            found.pop((record.partition, record.key), None)
        elif record.key != POSITION_KEY:
            found[record.partition, record.key] = head_of(record.value).n_counted
    return found


def listed(answer: Recommendation) -> set[str]:
    return {item.item_id for item in answer.items}


def test_an_item_that_is_five_seconds_old_is_in_the_list_of_another_workers_session(
    live: Deployment,
) -> None:
    workers = [live.start(), live.start()]
    live.start(command="count")
    wait_for(
        lambda: len({p.address for p in live.positions().values() if p.address}) == 2,
        60,
        "two owners",
    )
    owners = {p: position.address for p, position in live.positions().items()}
    there = next(iter(owners))
    elsewhere = next(p for p in owners if owners[p] != owners[there])
    now_ms = LOG_BEGIN_MS
    began = time.monotonic()
    # Somebody clicks a known item and then one that no network has seen.
    first = [("a", "item-7"), ("a", "fresh"), ("b", "item-7"), ("b", "fresh")]
    live.send(
        [(s.encode(), click(s, item, now_ms + n)) for n, (s, item) in enumerate(first)],
        partition=there,
    )
    live.wait_until_answered(len(first))
    n_sent = len(first)
    while True:
        n_sent += 1
        session = f"reader-{n_sent}"
        at_ms = now_ms + int(1000 * (time.monotonic() - began))
        live.send([(session.encode(), click(session, "item-7", at_ms))], partition=elsewhere)
        live.wait_until_answered(n_sent)
        (answer,) = answers(live, session)
        found = {item.item_id: item.source for item in answer.items}
        if "fresh" in found:
            break
        # On two quiet cores it takes some two seconds, most of them this test's own looks.
        assert time.monotonic() - began < 60, "a fresh item never came into a list"
    assert found["fresh"] == "transitions"
    assert answer.outcome == "model"
    assert answer.view_ms is not None
    assert len(answer.items) == 20
    # And who clicks it is answered from what came before and after it.
    live.send([(b"c", click("c", "fresh", now_ms + 60_000))], partition=elsewhere)
    live.wait_until_answered(n_sent + 1)
    (answer,) = answers(live, "c")
    assert answer.outcome == "live"
    assert "item-7" in {item.item_id for item in answer.items if item.source == "transitions"}
    assert all(worker.process.poll() is None for worker in workers)


def test_a_worker_on_an_empty_view_answers_and_what_strangers_write_stops_nobody(
    live: Deployment,
) -> None:
    worker, counting = live.start(), live.start(command="count", bad_click_run_limit="3")
    unknown, known = ask(live, "fresh", 0, 0), ask(live, "item-7", 1, 4)
    assert {answer.outcome for answer in known} == {"model"}
    assert unknown[0].outcome == "fallback"
    assert len(unknown[0].items) == 20
    assert unknown[0].view_ms is None
    cut = encode_events(ItemEvents(1, ["a"], [], [0], [5]))
    for topic in (live.item_events, live.item_view):
        for partition in range(4):
            strange = [(b"k", b"garbage"), (b"\xff", None), (b"k", cut)]
            produce(live.bootstrap_servers, topic, strange, partition=partition)
    # Which are too many: an operator has seen them.
    wait_for(lambda: counting.log().count("partition_paused") == 4, 60, "paused partitions")
    resumed = live.command("resume", "--processor", "items")
    assert resumed.stdout.count(": continues at offset ") == 4, resumed.stderr
    live.wait_until_counted()
    letters = live.read(live.dead_letters)
    assert {r.headers["topic"] for r in letters} == {live.item_events.encode()}
    assert Counter((r.partition, r.headers["reason"]) for r in letters) == {
        (partition, reason): n
        for partition in range(4)
        for reason, n in ((b"bad_field", 2), (b"null_value", 1))
    }
    tried = itertools.count(2)

    def is_live() -> bool:
        n = next(tried)
        found = ask(live, "fresh", 1000 * n, 4 * n)
        return {answer.outcome for answer in found} == {"live"}

    wait_for(is_live, 30, "lists from the view")
    assert worker.process.poll() is None
    # Counted anew, it is the same.
    live.wait_until_counted()
    counting.end(signal.SIGTERM)
    assert counting.wait_for_exit() == 0
    counted = n_counted(live)
    done = live.command("reset", "--processor", "items", "--to", "earliest")
    assert done.stdout.count(": continues at offset 0") == 4, done.stderr
    assert " items dropped" in done.stdout
    assert n_counted(live) == {}
    view = {(r.partition, r.key): r.value for r in live.read(live.item_view)}
    assert {view[place] for place in counted} == {None}
    live.start(command="count")
    wait_for(lambda: n_counted(live) == counted, 60, "the same counts")


def test_a_view_that_is_deleted_stays_as_it_was_known_and_is_read_anew(live: Deployment) -> None:
    first, second = workers = [live.start(wait=False), live.start(wait=False)]
    counting = live.start(command="count", wait=False)
    for process in (*workers, counting):
        process.wait_until_ready()
    trail = ["item-7", "fresh"]
    live.send([(b"a", click("a", item, LOG_BEGIN_MS + n)) for n, item in enumerate(trail)])
    tried = itertools.count()

    def is_listed(item: str, after: str) -> bool:
        n = next(tried)
        found = ask(live, after, n, len(trail) + 4 * n)
        return all(item in listed(answer) for answer in found)

    wait_for(lambda: is_listed("fresh", "item-7"), 30, "lists from the view")
    admin = AdminClient({"bootstrap.servers": live.bootstrap_servers})
    admin.delete_topics([live.item_view])[live.item_view].result(20)
    wait_for(lambda: "view_not_read" in first.log(), 30, "a worker that says so")
    # A new item is due, and has nowhere to go. Who takes partitions over does without the view.
    live.send([(b"b", click("b", item, LOG_BEGIN_MS + 2)) for item in ("item-9", "newer")])
    trail += ["item-9", "newer"]
    second.end(signal.SIGTERM)
    assert second.wait_for_exit() == 0
    assert is_listed("fresh", "item-7")
    assert counting.wait_for_exit() == 2, counting.log()
    missing = f"missing topics: {live.item_view}; `python -m stream topics create` creates them"
    assert missing in counting.log()
    assert first.log().count("view_not_read") == 1
    live.create_topics()
    live.start(command="count", wait=False)
    wait_for(lambda: is_listed("newer", "item-9"), 30, "the new topic's items")
    assert is_listed("fresh", "item-7"), "what was known stays"
    assert first.process.poll() is None, first.log()
    assert "view_made_anew" in first.log()


def test_without_its_topics_neither_a_worker_nor_the_item_processor_starts(
    live: Deployment,
) -> None:
    admin = AdminClient({"bootstrap.servers": live.bootstrap_servers})
    topics = [live.item_events, live.item_view, live.items_changelog]
    for deleted in admin.delete_topics(topics).values():
        deleted.result(20)
    wait_for(lambda: {*topics}.isdisjoint(admin.list_topics(timeout=10).topics), 30, "no topics")
    for process in (live.start(wait=False), live.start(command="count", wait=False)):
        assert process.wait_for_exit() == 2, process.log()
        assert "missing topics: " in process.log()
        assert all(topic in process.log() for topic in topics)
        assert "`python -m stream topics create` creates them" in process.log()
    checked = live.command("topics", "check")
    assert checked.returncode == 0, checked.stderr
    assert f"none of {', '.join(topics)} exists: a bundle whose manifest" in checked.stdout
    # With one of them the deployment is meant to have them, and that one decides how many
    # partitions its changelog has.
    config = {"message.timestamp.type": "LogAppendTime"}
    events = NewTopic(live.item_events, 7, 1, config=config)
    admin.create_topics([events])[live.item_events].result(20)
    checked = live.command("topics", "check")
    assert checked.returncode == 2
    assert f"missing topics: {live.item_view}, {live.items_changelog}; " in checked.stderr
    created = live.command("topics", "create")
    assert created.returncode == 0, created.stderr
    assert live.command("topics", "check").stdout.startswith("topics are set up correctly: ")
    found = admin.list_topics(timeout=10).topics
    assert len(found[live.items_changelog].partitions) == 7
