"""Traffic that few producers make, and every one may."""

import json
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from bench.faults.service import Deployment
from bench.faults.traffic import LOG_BEGIN_MS, click, session_load
from bench.faults.verdict import sessions_in_changelog, verdict
from bench.faults.wire import RawProducer
from deploy.processes import wait_for
from stream.position import POSITION_KEY
from stream.session import decode_state
from tests.integration.conftest import own_deployment

HOUR_MS = 3_600_000
COUNTED = ("stale_clicks", "begun_sessions", "expired_sessions")


def test_clicks_of_aborted_transactions_are_never_answered(deployment: Deployment) -> None:
    deployment.start()
    producer = Producer(
        {
            "bootstrap.servers": deployment.bootstrap_servers,
            "transactional.id": f"{deployment.app}-shop",
            "partitioner": "murmur2_random",
            "compression.type": "zstd",
        }
    )
    producer.init_transactions(30)
    n_committed, load = 0, list(session_load(2000))
    for n in range(40):
        clicks = load[50 * n : 50 * (n + 1)]
        producer.begin_transaction()
        for key, value in clicks:
            producer.produce(deployment.clicks, value, key)
        if n % 3:
            producer.commit_transaction(30)
            n_committed += len(clicks)
        else:
            producer.flush(30)  # else nothing of it reaches the topic
            producer.abort_transaction(30)
    wait_for(
        lambda: len(deployment.read(deployment.recommendations)) == n_committed,
        60,
        "the committed clicks' answers",
    )
    assert verdict(deployment).exact


def test_a_producer_an_hour_late_has_one_session_and_its_retries_count_once(
    deployment: Deployment,
) -> None:
    worker = deployment.start()
    clicks = []
    for n in range(20):
        item, now_ms = f"item-{n}", LOG_BEGIN_MS + 1000 * n
        late = (b"late", click("late", item, now_ms - HOUR_MS, f"late-{n}"))
        clicks += [(b"punctual", click("punctual", item, now_ms)), late, late]
        clicks.append((b"seconds", click("seconds", item, now_ms // 1000)))
    deployment.send(clicks, partition=0)
    deployment.wait_until_answered(len(clicks))
    found = deployment.read(deployment.recommendations)
    outcomes = [json.loads(r.value or b"")["outcome"] for r in found if r.key == b"late"]
    assert outcomes == 20 * ["model", "duplicate"]
    states = {key: decode_state(raw) for (_, key), raw in sessions_in_changelog(deployment).items()}
    assert {key: state.n_clicks for key, state in states.items()} == {b"punctual": 20, b"late": 20}
    reasons = [r.headers["reason"] for r in deployment.read(deployment.dead_letters)]
    assert reasons == 20 * [b"timestamp_too_small"]
    counted = {name: worker.metric(f"recs_{name}_total") for name in COUNTED}
    assert counted == {"stale_clicks": 40, "begun_sessions": 2, "expired_sessions": 0}
    assert verdict(deployment).exact


@pytest.mark.timeout(240)
def test_a_session_of_100_000_clicks_is_one_session(deployment: Deployment) -> None:
    n_clicks = 100_000
    clicks = (
        (b"robot", click("robot", f"item-{n % 50}", LOG_BEGIN_MS + n, f"event-{n}"))
        for n in range(n_clicks)
    )
    deployment.send(clicks)
    worker = deployment.start()
    deployment.wait_until_answered(n_clicks, timeout_s=180)
    assert worker.process.poll() is None
    (raw,) = sessions_in_changelog(deployment).values()
    state = decode_state(raw)
    assert (state.n_clicks, len(state.trail)) == (n_clicks, 50)


@pytest.mark.timeout(240)
def test_100_000_sessions_that_expire_at_one_moment_hold_nobody_up(
    deployment: Deployment,
) -> None:
    n_sessions = 100_000

    def load() -> Iterator[tuple[bytes, bytes]]:
        for n in range(n_sessions):
            name = f"session-{n}"
            yield name.encode(), click(name, f"item-{n % 50}", LOG_BEGIN_MS)

    deployment.send(load())
    worker = deployment.start()
    deployment.wait_until_answered(n_sessions, timeout_s=180)
    late = [
        (b"late-%d" % n, click(f"late-{n}", "item-1", LOG_BEGIN_MS + 3 * HOUR_MS + n))
        for n in range(4000)
    ]
    deployment.send(late, per_second=500.0)
    deployment.wait_until_answered(n_sessions + len(late))
    ended = worker.metric("recs_expired_sessions_total")
    assert ended > 4000, f"{ended} sessions ended"
    in_batch: defaultdict[int, int] = defaultdict(int)
    most = 0
    for record in deployment.read(deployment.changelog):
        if record.key == POSITION_KEY:
            most = max(most, in_batch.pop(record.partition, 0))
        else:
            in_batch[record.partition] += record.value is None
    assert 0 < most <= 2 * 256, f"{most} of them in one batch"


def test_clicks_that_retention_takes_under_a_running_worker_are_counted_and_the_rest_answered(
    deployment: Deployment,
) -> None:
    worker = deployment.start()
    deployment.send(session_load(400), partition=0)
    deployment.wait_until_answered(400)
    worker.end(signal.SIGSTOP)
    deployment.send(session_load(400, seed=2), partition=0)
    admin = AdminClient({"bootstrap.servers": deployment.bootstrap_servers})
    begin = TopicPartition(deployment.clicks, 0, 600)
    for deleted in admin.delete_records([begin]).values():
        deleted.result(30)
    worker.end(signal.SIGCONT)
    deployment.wait_until_answered(800)
    assert worker.process.poll() is None
    lost = worker.metric("recs_lost_clicks_total")
    answers = len(deployment.read(deployment.recommendations))
    # What the worker had asked for when it was stopped reached it all the same.
    assert 0 < lost <= 200 and lost + answers == 800
    assert "clicks_lost_to_retention" in worker.log()


def test_a_gap_of_five_million_clicks_is_a_number_and_not_a_list(deployment: Deployment) -> None:
    """Retention takes them while the worker sleeps past its session timeout."""
    worker = deployment.start()
    deployment.send(session_load(400), partition=0)
    deployment.wait_until_answered(400)
    before = worker.metric("process_resident_memory_bytes")
    worker.end(signal.SIGSTOP)
    # What the worker has asked for reaches it all the same: let that be one click.
    deployment.send(session_load(1, seed=2), partition=0)
    time.sleep(0.5)
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1_000_000)
    for n in range(50_000):
        assert builder.append(n, 0, None, b"x", []) is not None, "a full batch"
    batch = bytes(builder.build())
    producer = RawProducer(deployment.bootstrap_servers)
    for _ in range(100):
        producer.send(deployment.clicks, 0, batch)
    producer.close()
    deployment.send(session_load(399, seed=3), partition=0)
    admin = AdminClient({"bootstrap.servers": deployment.bootstrap_servers})
    for deleted in admin.delete_records([TopicPartition(deployment.clicks, 0, 5_000_401)]).values():
        deleted.result(30)
    worker.end(signal.SIGCONT)
    deployment.wait_until_answered(5_000_800)
    lost = worker.metric("recs_lost_clicks_total")
    assert lost >= 5_000_000
    assert lost + len(deployment.read(deployment.recommendations)) == 5_000_800
    assert worker.process.poll() is None
    assert worker.metric("process_resident_memory_bytes") < before + 100e6


@pytest.mark.parametrize(
    ("name", "n_before", "n_anew"),
    [("clicks", 500, 100), ("clicks", 100, 2000), ("changelog", 500, 500)],
    ids=["clicks, fewer", "clicks, more", "changelog"],
)
def test_a_topic_that_is_made_anew_under_a_worker_ends_it_with_a_sentence(
    deployment: Deployment, name: str, n_before: int, n_anew: int
) -> None:
    """However fast: the new one is there before the worker has missed the old one."""
    worker = deployment.start()
    deployment.send(session_load(n_before))
    deployment.wait_until_answered(n_before)
    topic = getattr(deployment, name)
    admin = AdminClient({"bootstrap.servers": deployment.bootstrap_servers})
    for deleted in admin.delete_topics([topic]).values():
        deleted.result(30)
    wait_for(lambda: topic not in admin.list_topics(timeout=10).topics, 30, "no topic")
    deployment.create_topics()
    deployment.send(session_load(n_anew, seed=2), partition=0)
    assert worker.wait_for_exit(20) == 2, worker.log()
    assert "the topic was deleted and recreated" in worker.log()
    assert f"{topic} has topic id" in worker.log()
    again = deployment.start(wait=False)
    assert again.wait_for_exit(60) == 2, again.log()
    assert "choose where to continue" in again.log()


def test_a_cluster_that_compresses_everything_changes_nothing(tmp_path: Path) -> None:
    """The codec of the brokers holds for all topics, the changelog that is restored among them."""
    with own_deployment(tmp_path, {"compression.type": "zstd"}) as (broker, deployment):
        first = deployment.start()
        deployment.send(session_load(2000))
        deployment.wait_until_answered(2000)
        first.end(signal.SIGKILL)
        deployment.start()
        deployment.send(session_load(2000, seed=2))
        deployment.wait_until_answered(4000)
        (log,) = (broker.data_dir / "log").glob("own-sessions-changelog-0/*.log")
        assert log.read_bytes()[22] & 7 == 4, "the first batch is compressed by zstd"
        found = verdict(deployment)
    assert found.exact, str(found)
