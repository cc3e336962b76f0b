"""A commit whose markers the broker loses: what a broker that shuts down leaves now and then."""

import asyncio
import signal
import struct
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from confluent_kafka import Producer

from bench.faults.service import SESSION_TIMEOUT_S, Deployment
from bench.faults.traffic import session_load
from bench.faults.verdict import verdict
from deploy.broker import EmbeddedKafka
from deploy.processes import wait_for
from stream.contract.records import Message
from stream.settings import KafkaSettings
from stream.transport.reader import ends_of
from stream.transport.transactions import Brokers, TransactionalProducer, transactional_ids
from tests.integration.conftest import own_deployment

N_CLICKS = 300
CONTROL = 0x20
"""The attribute of a batch that holds a transaction's marker (record format 2)."""


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[tuple[EmbeddedKafka, Deployment]]:
    with own_deployment(tmp_path, partitions=1) as both:
        yield both


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("lost_in", "survives", "guards"),
    [
        (("recommendations", "changelog"), False, ()),
        (("recommendations", "changelog"), True, ()),
        (("recommendations", "changelog"), False, ("abort",)),
        (("changelog",), False, ()),
        (("recommendations",), False, ()),
    ],
    ids=["both", "both, the same worker", "broken", "changelog", "recommendations"],
)
def test_a_transaction_that_lost_commit_markers_is_answered_once(
    deployed: tuple[EmbeddedKafka, Deployment],
    lost_in: tuple[str, ...],
    survives: bool,
    guards: tuple[str, ...],
) -> None:
    broker, deployment = deployed
    worker = deployment.start(*guards)
    load = list(session_load(N_CLICKS))
    deployment.send(islice(load, 0, 200))
    deployment.wait_until_answered(200)
    topics = [getattr(deployment, name) for name in lost_in]
    before = [len(deployment.read(topic)) for topic in topics]
    worker.end(signal.SIGSTOP if survives else signal.SIGKILL)
    lose_markers(broker, deployment, topics)
    left = [len(deployment.read(topic)) for topic in topics]
    assert all(n < n_before for n, n_before in zip(left, before, strict=True)), "nothing hangs"
    if survives:
        time.sleep(SESSION_TIMEOUT_S + 2)  # it rejoins, and restores what it had applied
        worker.end(signal.SIGCONT)
    else:
        worker = deployment.start(*guards, wait=False)
    if guards:
        time.sleep(15)  # no owner of other ids ends the transaction, and no restore passes it
        assert worker.get("/ready")[0] == 503
        return
    wait_for(lambda: "hanging_transaction_committed" in worker.log(), 60, "its end")
    deployment.send(islice(load, 200, None))
    deployment.wait_until_answered(N_CLICKS)
    found = verdict(deployment)
    assert found.exact, str(found)


@pytest.mark.timeout(180)
def test_a_lost_commit_marker_is_made_up_for_before_the_same_id_is_used_again(
    deployed: tuple[EmbeddedKafka, Deployment],
) -> None:
    """The worker goes on, and dies in a transaction that would take what hangs along."""
    broker, deployment = deployed
    # Not expelled while the broker is away: it then restores, and settles all anyhow.
    worker = deployment.start("sleep_before_end", session_timeout_s="15")
    load = iter(list(session_load(N_CLICKS)))

    def is_over(n_clicks: int) -> bool:
        """Whether so many clicks are answered, or it sleeps at the end of its tenth transaction."""
        return worker.is_stopped or len(deployment.read(deployment.recommendations)) == n_clicks

    for n in range(1, 8):  # a transaction each, behind that of the claim
        deployment.send(islice(load, 1))
        deployment.wait_until_answered(n)
    worker.end(signal.SIGSTOP)
    lose_markers(broker, deployment, [deployment.changelog])  # of the eighth
    worker.end(signal.SIGCONT)
    n_sent = 7
    while not worker.is_stopped:
        n_sent += deployment.send(islice(load, 1))
        wait_for(partial(is_over, n_sent), 60, "an answer")
    worker.end(signal.SIGKILL)
    deployment.start(wait=False)
    deployment.wait_until_answered(n_sent + deployment.send(load))
    found = verdict(deployment)
    assert found.exact, str(found)


@pytest.mark.timeout(180)
def test_an_answer_that_lost_its_marker_is_shown_though_no_click_comes(
    deployed: tuple[EmbeddedKafka, Deployment],
) -> None:
    broker, deployment = deployed
    worker = deployment.start(session_timeout_s="60")
    deployment.send(session_load(1))
    deployment.wait_until_answered(1)
    worker.end(signal.SIGSTOP)
    lose_markers(broker, deployment, [deployment.recommendations])
    assert deployment.read(deployment.recommendations) == []
    worker.end(signal.SIGCONT)
    wait_for(lambda: deployment.read(deployment.recommendations), 60, "the answer")
    assert "hanging_transaction_committed" in worker.log()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "lost_in",
    [("recommendations", "changelog"), ("recommendations",)],
    ids=["both", "recommendations"],
)
async def test_a_transaction_that_lost_abort_markers_stays_aborted(
    deployed: tuple[EmbeddedKafka, Deployment], lost_in: tuple[str, ...]
) -> None:
    broker, deployment = deployed
    worker = deployment.start()
    load = list(session_load(N_CLICKS))
    deployment.send(islice(load, 0, 200))
    deployment.wait_until_answered(200)
    worker.end(signal.SIGKILL)
    # As the worker would have left it: records with one of its ids, and an abort.
    (position,) = deployment.positions().values()
    settings = KafkaSettings.model_validate(deployment.settings())
    brokers = Brokers(settings, partial(ends_of, settings))
    await brokers.start(deployment.topics)
    producer = TransactionalProducer(brokers, transactional_ids(position.owner)[0])
    await producer.start()
    topics = [deployment.recommendations, deployment.changelog]
    await producer.send_records({(topic, 0): [Message(b"s", b"{}")] for topic in topics})
    await producer.end(commit=False)
    await brokers.close()
    lose_markers(broker, deployment, [getattr(deployment, name) for name in lost_in])
    worker = deployment.start(wait=False)
    wait_for(lambda: "hanging_transaction_aborted" in worker.log(), 60, "its end")
    deployment.send(islice(load, 200, None))
    deployment.wait_until_answered(N_CLICKS)
    found = verdict(deployment)
    assert found.exact, str(found)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("lost_in", ["changelog", "recommendations"])
async def test_what_an_expired_id_has_left_open_is_told_and_holds_no_other_partition_up(
    tmp_path: Path, lost_in: str
) -> None:
    expires = {
        "transactional.id.expiration.ms": "15000",
        "transaction.remove.expired.transaction.cleanup.interval.ms": "500",
    }
    with own_deployment(tmp_path, expires, partitions=2) as (broker, deployment):
        worker = deployment.start()
        load = list(session_load(N_CLICKS))
        for partition in range(2):
            deployment.send(load[:50], partition=partition)
            deployment.wait_until_answered(50 * (partition + 1))
        worker.end(signal.SIGKILL)
        settings = KafkaSettings.model_validate(deployment.settings())
        brokers = Brokers(settings, partial(ends_of, settings))
        await brokers.start(deployment.topics)
        for name in transactional_ids(deployment.positions()[0].owner):
            async with asyncio.timeout(60):
                while await TransactionalProducer(brokers, name).state():  # noqa: ASYNC110
                    await asyncio.sleep(0.2)  # the broker has no event for it
        await brokers.close()
        topic = getattr(deployment, lost_in)
        lose_markers(broker, deployment, [topic])
        worker = deployment.start(wait=False)
        wait_for(lambda: "transaction_left_open" in worker.log(), 60, "the sentence")
        assert f"kafka-transactions.sh abort --topic {topic} --partition 0 --st" in worker.log()
        for partition in (0, 1):
            deployment.send(load[50:100], partition=partition)
        served = [50, 100] if lost_in == "changelog" else [100, 100]

        def positions() -> list[int]:
            return [position.next_offset for _, position in sorted(deployment.positions().items())]

        wait_for(lambda: positions()[1] == served[1], 60, "the other partition")
        if lost_in == "changelog":
            wait_for(lambda: worker.log().count("transaction_left_open") > 1, 60, "another try")
        else:
            wait_for(lambda: positions() == served, 60, "this one, too")
        assert positions()[0] <= served[0]
        assert "hanging_transaction" not in worker.log(), "nothing of it was ended"
        assert worker.process.poll() is None
        ready = worker.get("/ready")[0]
        assert ready == (503 if lost_in == "changelog" else 200)


async def test_a_strangers_open_transaction_in_the_recommendations_is_none_of_ours(
    deployed: tuple[EmbeddedKafka, Deployment],
) -> None:
    broker, deployment = deployed
    worker = deployment.start()
    deployment.send(session_load(50))
    deployment.wait_until_answered(50)
    worker.end(signal.SIGKILL)
    stranger = Producer(
        {"bootstrap.servers": broker.bootstrap_servers, "transactional.id": "a-stranger"}
    )
    stranger.init_transactions(30)
    stranger.begin_transaction()
    stranger.produce(deployment.recommendations, b"{}", b"s", partition=0)
    stranger.flush(30)
    worker = deployment.start()
    assert "transaction_left_open" in worker.log()
    assert "hanging_transaction" not in worker.log()
    stranger.abort_transaction(30)
    deployment.send(session_load(50, seed=2))
    deployment.wait_until_answered(100)
    assert verdict(deployment).exact


def lose_markers(broker: EmbeddedKafka, deployment: Deployment, topics: Sequence[str]) -> None:
    """Restart the broker on logs without the last marker of these topics."""
    broker.stop()
    log = broker.data_dir / "log"
    for topic in topics:
        cut_last_marker(log / f"{topic}-0" / f"{0:020}.log")
    # Without the notes of a clean end the broker looks at the logs themselves.
    for note in (".kafka_cleanshutdown", "*-checkpoint", f"{deployment.app}-*/*.snapshot"):
        for path in log.glob(note):
            path.unlink()
    broker.start()


def cut_last_marker(path: Path) -> None:
    """Take the last batch off a partition's log; it must be a marker."""
    log = path.read_bytes()
    begin = end = 0
    while end < len(log):
        begin = end
        end += 12 + struct.unpack_from(">i", log, begin + 8)[0]
    attributes = struct.unpack_from(">h", log, begin + 21)[0]
    assert attributes & CONTROL, f"the last batch of {path} is no marker"
    path.write_bytes(log[:begin])
