"""Bad input: routed, counted, explained, and nothing lost."""

import json
import signal
import struct
import time
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer
from onnx import TensorProto

from bench.faults.service import Deployment, WorkerProcess
from bench.faults.traffic import LOG_BEGIN_MS, click, session_load
from bench.faults.verdict import sessions_in_changelog, verdict
from bench.faults.wire import (
    NamedBytes,
    RawProducer,
    batch_of,
    gzip_member,
    one_record,
    record,
)
from bench.serving.bundles import write_tiny_bundle
from deploy.processes import wait_for
from export.graph import Graph, value_info
from stream.contract.click import Reason
from stream.model.bundle import load_bundle, write_bundle
from stream.session import decode_state
from stream.settings import KafkaSettings
from stream.transport.reader import Unreadable, bounds, read_committed
from tests.integration.conftest import own_deployment

YEAR_9999_MS = 253_370_764_800_000


def test_every_kind_of_click_goes_where_the_contract_says(deployment: Deployment) -> None:
    good = click("s", "item-1", LOG_BEGIN_MS, "first")
    bad = {
        Reason.NOT_JSON: (b"s", b"not json"),
        Reason.BAD_FIELD: (b"s", b'{"session_id": "s", "timestamp_ms": 1}'),
        Reason.BAD_ITEM_ID: (b"s", click("s", "x" * 10_000, LOG_BEGIN_MS)),
        Reason.TIMESTAMP_TOO_SMALL: (b"s", click("s", "item-1", LOG_BEGIN_MS // 1000)),
        Reason.BAD_TIMESTAMP: (b"s", click("s", "item-1", YEAR_9999_MS)),
        Reason.NULL_VALUE: (b"s", None),
        Reason.NULL_KEY: (None, good),
        Reason.KEY_MISMATCH: (b"other", good),
        Reason.BAD_SESSION_ID: (b"", click("", "item-1", LOG_BEGIN_MS)),
    }
    others = {Reason.TOO_LARGE, Reason.UNREADABLE, Reason.UNPROCESSABLE}
    assert set(bad) == set(Reason) - others
    clicks = [
        (b"s", good),
        *bad.values(),
        (b"s", good),  # the same event again
        (b"s", click("s", "nobody-knows-me", LOG_BEGIN_MS + 1)),
        (b"s", click("s", "item-2", LOG_BEGIN_MS + 2)),
        (b"t", click("t", "nobody-knows-me", LOG_BEGIN_MS + 3)),
    ]
    deployment.send(clicks, partition=0)
    worker = deployment.start()
    deployment.wait_until_answered(len(clicks))

    answers = [json.loads(r.value or b"") for r in deployment.read(deployment.recommendations)]
    outcomes = [answer["outcome"] for answer in answers]
    assert outcomes == ["model", "duplicate", "unknown_item", "model", "fallback"]
    assert answers[0]["items"] == answers[1]["items"] == answers[2]["items"]
    assert answers[3]["items"] != answers[0]["items"]
    letters = deployment.read(deployment.dead_letters)
    assert [(r.headers["reason"].decode(), r.key, r.value) for r in letters] == [
        (reason.value, *record) for reason, record in bad.items()
    ]
    for n, letter in enumerate(letters, start=1):
        assert letter.headers["topic"].decode() == deployment.clicks
        assert letter.headers["partition"] == b"0"
        assert letter.headers["offset"] == str(n).encode()
        assert letter.headers["detail"]
    for reason in bad:
        assert worker.metric(f'recs_rejected_clicks_total{{reason="{reason}"}}') == 1
    assert worker.metric('recs_clicks_total{outcome="duplicate"}') == 1


def test_an_event_of_another_type_is_answered_and_leaves_no_trace(
    deployment: Deployment, tmp_path: Path
) -> None:
    deployment.bundle = write_tiny_bundle(
        tmp_path / "typed", n_items=50, hidden_size=8, k=20, event_types=("view",)
    )
    load = [("item-1", "cart"), ("item-1", "view"), ("item-2", "cart"), ("item-2", "view")]
    clicks = [
        (b"s", click("s", item, LOG_BEGIN_MS + n, event_type=event_type))
        for n, (item, event_type) in enumerate(load)
    ]
    clicks.append((b"t", click("t", "item-3", LOG_BEGIN_MS + 9)))  # of no type
    deployment.send(clicks, partition=0)
    worker = deployment.start()
    deployment.wait_until_answered(len(clicks))
    answers = [json.loads(r.value or b"") for r in deployment.read(deployment.recommendations)]
    outcomes = [answer["outcome"] for answer in answers]
    assert outcomes == ["other_event", "model", "other_event", "model", "other_event"]
    assert answers[2]["items"] == answers[1]["items"] != answers[0]["items"]
    assert answers[4]["items"] == answers[0]["items"], "popularity"
    ((name, raw),) = sessions_in_changelog(deployment).items()
    assert name == (0, b"s")
    assert [c.item_id for c in decode_state(raw).trail] == ["item-1", "item-2"]
    assert worker.metric('recs_clicks_total{outcome="other_event"}') == 3
    assert verdict(deployment).exact


def mutated(value: bytes, random: np.random.Generator) -> bytes:
    """A valid click with a few of its bytes changed, dropped or doubled."""
    raw = bytearray(value)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(len(raw)))
        how = random.integers(3)
        if how == 0:
            raw[at] = int(random.integers(256))
        elif how == 1:
            del raw[at]
        else:
            raw[at:at] = raw[at : at + 8]
    return bytes(raw)


def test_random_bytes_and_mutated_clicks_lose_nothing_and_stop_nothing(
    deployment: Deployment,
) -> None:
    random = np.random.default_rng(7)
    good = list(session_load(80_000, n_sessions=5000))
    bad = [random.bytes(int(random.integers(0, 200))) for _ in range(10_000)]
    bad += [mutated(value, random) for _, value in good[:10_000]]
    clicks = []
    for n, value in enumerate(bad):
        clicks.append((good[4 * n][0], value))
        clicks += good[4 * n : 4 * n + 4]
    deployment.send(clicks)
    worker = deployment.start()
    deployment.wait_until_answered(len(clicks), timeout_s=200)
    assert worker.process.poll() is None
    answers = len(deployment.read(deployment.recommendations))
    letters = deployment.read(deployment.dead_letters)
    assert answers + len(letters) == len(clicks)
    # A mutation can leave a click good; no random string is one.
    assert 10_000 < len(letters) <= len(bad)
    assert answers >= len(good)


def is_paused(worker: WorkerProcess, partition: int) -> bool:
    return worker.metric(f'recs_paused_partition{{partition="{partition}"}}') == 1


def is_answered(deployment: Deployment, partition: int, next_offset: int) -> bool:
    return deployment.positions()[partition].next_offset == next_offset


def test_a_partition_at_its_limit_is_paused_alone_until_an_operator_lets_it_go_on(
    deployment: Deployment,
) -> None:
    n_good = deployment.send(
        ((b"s", click("s", "item-1", LOG_BEGIN_MS + n)) for n in range(300)), partition=0
    )
    deployment.send(((b"s", b"no click") for _ in range(10_000)), partition=0)
    deployment.send([(b"s", click("s", "item-2", LOG_BEGIN_MS + 400))], partition=0)
    for begin in (0, 100):  # the second worker inherits the partition, and does not end either
        worker = deployment.start()
        wait_for(partial(is_paused, worker, 0), 60, "a paused partition")
        assert f"offsets {n_good} to {n_good + 999}: the limit is 1000" in worker.log()
        assert deployment.positions()[0].next_offset == n_good + 999, "those before are applied"
        others = ((b"t", click("t", "item-1", LOG_BEGIN_MS + n)) for n in range(begin, begin + 100))
        deployment.send(others, partition=1)
        wait_for(partial(is_answered, deployment, 1, begin + 100), 60, "the others")
        assert [is_paused(worker, p) for p in range(4)] == [True, False, False, False]
        if begin == 0:
            worker.end(signal.SIGKILL)
    found = deployment.command("resume")
    assert found.stdout == f"partition 0: continues at offset {n_good + 999}\n", found.stderr
    deployment.wait_until_answered(10_501)
    assert len(deployment.read(deployment.dead_letters)) == 10_000
    assert len(deployment.read(deployment.recommendations)) == 501
    wait_for(lambda: not is_paused(worker, 0), 10, "a gauge at rest")
    assert deployment.command("resume").stdout == "no partition is paused\n"
    # The excuse ends with what was in the log.
    deployment.send(((b"s", b"no click") for _ in range(1_100)), partition=0)
    wait_for(partial(is_paused, worker, 0), 60, "a partition that is paused again")
    assert worker.process.poll() is None


def test_a_click_that_cannot_be_processed_pauses_its_partition_until_it_is_passed_over(
    deployment: Deployment,
) -> None:
    def clicks(name: str, n_before: int, n_clicks: int = 50) -> list[tuple[bytes, bytes]]:
        at = range(n_before, n_before + n_clicks)
        return [(name.encode(), click(name, "item-1", LOG_BEGIN_MS + n)) for n in at]

    deployment.send([*clicks("s", 0), (b"s", b"poison"), *clicks("s", 50)], partition=0)
    deployment.send(clicks("t", 0), partition=1)
    worker = deployment.start("fail_at_poison")
    wait_for(partial(is_paused, worker, 0), 60, "a paused partition")
    deployment.send(clicks("t", 50), partition=1)
    deployment.wait_until_answered(150)
    assert deployment.positions()[0].next_offset == 50
    assert "ZeroDivisionError" in worker.log(), "bugs are not swallowed"
    tried = deployment.command("resume", "--partition", "0")
    assert tried.stdout == "partition 0: continues at offset 50\n", tried.stderr
    wait_for(lambda: worker.log().count("partition_paused") == 2, 60, "a partition paused again")
    wrong = deployment.command("resume", "--partition", "1")
    assert (wrong.returncode, wrong.stderr) == (2, "partition 1 is not paused\n")
    found = deployment.command("resume", "--partition", "0", "--pass-over")
    assert found.stdout == "partition 0: skips offset 50\n", found.stderr
    deployment.wait_until_answered(201)
    (letter,) = deployment.read(deployment.dead_letters)
    assert letter.value == b"poison" and letter.headers["reason"] == b"unprocessable"
    assert verdict(deployment).exact, str(verdict(deployment))


def test_a_list_that_cannot_be_written_pauses_its_partition_alone(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Of a model that fails at a session's sixth click, which no check at the start can know."""

    def clicks(name: str, n_clicks: int) -> list[tuple[bytes, bytes]]:
        return [
            (name.encode(), click(name, "item-1", LOG_BEGIN_MS + n, f"{name}-{n}"))
            for n in range(n_clicks)
        ]

    sound = write_tiny_bundle(tmp_path, n_items=50, hidden_size=8, k=20, constant=True)
    whole = load_bundle(sound)
    deployment.bundle = write_bundle(
        tmp_path, whole.manifest, whole.item_ids, whole.encode(), rank_until(5, 8, 20)
    )
    deployment.send([*clicks("a", 5), *clicks("long", 8), *clicks("b", 5)], partition=0)
    deployment.send([c for n in range(40) for c in clicks(f"s{n}", 5)], partition=1)
    for n_others in (200, 250):  # the second worker inherits the partition, and does not end either
        worker = deployment.start()
        wait_for(partial(is_paused, worker, 0), 60, "a paused partition")
        wait_for(partial(is_answered, deployment, 1, n_others), 60, "the others")
        assert [is_paused(worker, p) for p in range(4)] == [True, False, False, False]
        assert deployment.positions()[0].next_offset == 10, "those before are applied"
        assert "IndexError" in worker.log(), "bugs are not swallowed"
        worker.end(signal.SIGKILL)
        deployment.send([c for n in range(10) for c in clicks(f"t{n_others}-{n}", 5)], partition=1)
    deployment.bundle = sound
    worker = deployment.start()
    deployment.wait_until_answered(18 + 300)
    assert not is_paused(worker, 0)
    answered = [r.headers["source"] for r in deployment.read(deployment.recommendations)]
    assert len(set(answered)) == len(answered) == 18 + 300
    assert deployment.read(deployment.dead_letters) == []


def rank_until(n_clicks: int, query_size: int, k: int) -> bytes:
    """A graph over the queries of a bundle that counts: of more clicks its items do not exist."""
    graph = Graph()
    count = graph.add("Slice", "query", np.array([0]), np.array([1]), np.array([1]))
    over = graph.add("Greater", count, np.array(n_clicks, np.float32))
    wrong = graph.add(
        "Mul", graph.add("Cast", over, to=TensorProto.INT32), np.array([1_000_000], np.int32)
    )
    graph.add("Add", wrong, np.arange(k, dtype=np.int32)[None], output="top_index")
    none = graph.add("Mul", count, np.array([0], np.float32))
    graph.add("Add", none, np.arange(k, 0, -1, dtype=np.float32)[None], output="top_score")
    model = graph.model(
        [value_info("query", TensorProto.FLOAT, "B", query_size)],
        [
            value_info("top_index", TensorProto.INT32, "B", k),
            value_info("top_score", TensorProto.FLOAT, "B", k),
        ],
    )
    serialized: bytes = model.SerializeToString()
    return serialized


@pytest.mark.parametrize("size", [1_000_000, 5_000_000])
def test_a_bad_click_as_large_as_the_topic_takes_is_a_dead_letter(
    deployment: Deployment, size: int
) -> None:
    deployment.app += f"-{size}"
    deployment.create_topics(max_message_bytes=size)
    overhead = 200  # of the record and its batch
    value = b"x" * (size - overhead)
    deployment.send([(b"s", value), (b"s", click("s", "item-1", LOG_BEGIN_MS))])
    deployment.start()
    deployment.wait_until_answered(2)
    (letter,) = deployment.read(deployment.dead_letters)
    assert letter.value == value
    assert len(deployment.read(deployment.recommendations)) == 1


def test_dead_letters_are_stored_compressed(tmp_path: Path) -> None:
    with own_deployment(tmp_path) as (broker, deployment):
        value = b"x" * 1_000_000
        deployment.send([(b"s", value)] * 20, compression="gzip")
        deployment.start()
        deployment.wait_until_answered(20)
        assert [r.value for r in deployment.read(deployment.dead_letters)] == [value] * 20
        logs = (broker.data_dir / "log").glob("own-dead-letter-*/*.log")
        assert sum(log.stat().st_size for log in logs if log.exists()) < 100_000


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_record_that_is_small_compressed_and_large_plain_is_a_short_dead_letter(
    deployment: Deployment, codec: str
) -> None:
    good = [(b"s", click("s", f"item-{n}", LOG_BEGIN_MS + n)) for n in range(3)]
    large = b"x" * 3_000_000
    deployment.send([good[0], (b"s", large), good[1]], partition=0, compression=codec)
    worker = deployment.start()
    deployment.send([good[2]], partition=0)
    deployment.wait_until_answered(4)
    assert worker.process.poll() is None
    (letter,) = deployment.read(deployment.dead_letters)
    assert letter.value == large[: len(letter.value or b"")] and letter.value
    told = {name: value.decode() for name, value in letter.headers.items()}
    assert (told["reason"], told["offset"], told["bytes"]) == ("too_large", "1", "3000001")
    assert told["sha256"] == sha256(large).hexdigest()
    assert len(deployment.read(deployment.recommendations)) == 3
    assert worker.metric('recs_rejected_clicks_total{reason="too_large"}') == 1


@pytest.mark.parametrize(
    ("codec", "reason"), [("gzip", Reason.TOO_LARGE), ("zstd", Reason.UNREADABLE)]
)
def test_a_decompression_bomb_is_a_dead_letter_and_costs_bounded_memory(
    deployment: Deployment, codec: str, reason: Reason
) -> None:
    """librdkafka inflates gzip whatever comes of it, and gives zstd up at some 100 MB."""
    good = [(b"s", click("s", f"item-{n}", LOG_BEGIN_MS + n)) for n in range(2)]
    worker = deployment.start()
    deployment.send([good[0]], partition=0)
    deployment.wait_until_answered(1)
    for _ in range(3):
        deployment.send([(b"s", bytes(300_000_000))], partition=0, compression=codec)
    deployment.send([good[1]], partition=0)
    deployment.wait_until_answered(5)
    assert worker.process.poll() is None
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak) < 1_300_000, f"{peak} kB: four times the bomb, and the worker"
    letters = deployment.read(deployment.dead_letters)
    assert [r.headers["reason"].decode() for r in letters] == [reason] * 3
    assert [r.headers["offset"] for r in letters] == [b"1", b"2", b"3"]
    assert len(deployment.read(deployment.recommendations)) == 2


@pytest.mark.parametrize(
    "headers",
    [[(b"a", b"")] * 100_000, [("\N{EURO SIGN}".encode() * 400_000, b"x")]],
    ids=["many", "long name"],
)
def test_headers_that_are_larger_plain_than_the_topic_takes_are_too_large(
    deployment: Deployment, headers: list[NamedBytes]
) -> None:
    worker = deployment.start()
    raw = RawProducer(deployment.bootstrap_servers)
    good = click("s", "item-1", LOG_BEGIN_MS)
    raw.send(deployment.clicks, 0, one_record(b"s", b"x" * 900_000, headers, gzip=True))
    raw.send(deployment.clicks, 0, one_record(b"s", good))
    raw.close()
    deployment.wait_until_answered(2)
    assert worker.process.poll() is None, worker.log()
    (letter,) = deployment.read(deployment.dead_letters)
    assert letter.headers["reason"] == b"too_large"
    assert len(deployment.read(deployment.recommendations)) == 1


@pytest.mark.parametrize(
    "headers", [[(b"\xff\xfe", b"value")], [(b"", b"")] * 100_001], ids=["no text", "too many"]
)
def test_headers_that_the_client_cannot_read_stop_nothing(
    deployment: Deployment, headers: list[NamedBytes]
) -> None:
    worker = deployment.start()
    raw = RawProducer(deployment.bootstrap_servers)
    good = click("s", "item-1", LOG_BEGIN_MS)
    # The interpreter calls what it has called often without a look at the exception left behind.
    deployment.send([(b"s", good)] * 100, partition=0)
    for value in (good, b"no click"):
        raw.send(deployment.clicks, 0, one_record(b"s", value, headers, gzip=True))
    raw.close()
    deployment.wait_until_answered(102)
    assert worker.process.poll() is None, worker.log()
    (letter,) = deployment.read(deployment.dead_letters)
    assert (letter.value, letter.headers["reason"]) == (b"no click", b"not_json")
    assert len(deployment.read(deployment.recommendations)) == 101


def test_a_record_that_cannot_be_read_behind_a_marker_stops_nothing(
    deployment: Deployment,
) -> None:
    """What an aborted transaction leaves is looked at again: the bomb is beside it."""
    shop = Producer({"bootstrap.servers": deployment.bootstrap_servers, "transactional.id": "shop"})
    shop.init_transactions(30)
    good = click("s", "item-1", LOG_BEGIN_MS)
    for _ in range(2):
        shop.begin_transaction()
        shop.produce(deployment.clicks, good, b"s", partition=0)
        shop.flush(30)
        shop.abort_transaction(30)
        bomb = [(b"s", bytes(300_000_000))]
        deployment.send(bomb, partition=0, compression="zstd")
    deployment.send([(b"s", good)], partition=0)
    worker = deployment.start()
    wait_for(lambda: deployment.read(deployment.recommendations), 60, "the last click's answer")
    assert worker.process.poll() is None, worker.log()
    letters = deployment.read(deployment.dead_letters)
    assert [r.headers["reason"] for r in letters] == [b"unreadable"] * 2


CLICK = click("s", "item-1", LOG_BEGIN_MS)
PAIR = record(b"s", CLICK) + record(b"s", CLICK, number=1)
UNPARSABLE = {
    # The batch, its records, and how many of them librdkafka reads before it gives up.
    "key of length -2": (batch_of(record(b"", CLICK, key_length=-2), 1), 1, 0),
    "value of length -2": (batch_of(record(b"s", b"", value_length=-2), 1), 1, 0),
    "gzip members that end within a record": (
        batch_of(gzip_member(PAIR[:50]) + gzip_member(PAIR[50:]), 2, codec=1),
        *(2, 0),
    ),
    "record that says it is shorter": (
        batch_of(gzip_member(record(b"s", CLICK, length=5)), 1, codec=1),
        *(1, 0),
    ),
    "record that says it is longer": (
        batch_of(
            gzip_member(record(b"s", CLICK, length=500) + record(b"s", CLICK, number=1)), 2, codec=1
        ),
        *(2, 0),
    ),
    "third of four records": (
        batch_of(
            PAIR + record(b"", CLICK, number=2, key_length=-2) + record(b"s", CLICK, number=3),
            4,
        ),
        *(4, 2),
    ),
}
"""What a broker takes and librdkafka cannot parse."""


def test_a_batch_that_cannot_be_parsed_costs_its_own_records_and_nothing_else(
    deployment: Deployment,
) -> None:
    deployment.app += "-unparsable"
    n_partitions = len(UNPARSABLE) + 1
    deployment.create_topics(partitions=n_partitions)
    worker = deployment.start()
    raw = RawProducer(deployment.bootstrap_servers)
    for partition, (batch, _, _) in enumerate(UNPARSABLE.values()):
        raw.send(deployment.clicks, partition, one_record(b"s", CLICK))
        raw.send(deployment.clicks, partition, batch)
        raw.send(deployment.clicks, partition, one_record(b"s", CLICK))
    raw.close()
    # An open transaction is no such batch, however long nothing comes of it.
    shop = Producer({"bootstrap.servers": deployment.bootstrap_servers, "transactional.id": "slow"})
    shop.init_transactions(30)
    shop.begin_transaction()
    shop.produce(deployment.clicks, CLICK, b"s", partition=n_partitions - 1)
    shop.flush(30)
    ends = [2 + n for _, n, _ in UNPARSABLE.values()]
    deployment.wait_until_answered(sum(ends))
    shop.commit_transaction(30)
    deployment.wait_until_answered(sum(ends) + 1)
    assert worker.process.poll() is None
    assert not any(is_paused(worker, p) for p in range(n_partitions))
    letters = deployment.read(deployment.dead_letters)
    assert {r.headers["reason"] for r in letters} == {b"unreadable"}
    assert all(b"cannot parse" in r.headers["detail"] for r in letters)
    found = sorted((int(r.headers["partition"]), int(r.headers["offset"])) for r in letters)
    expected = [
        (p, offset)
        for p, (_, n, n_read) in enumerate(UNPARSABLE.values())
        for offset in range(1 + n_read, 1 + n)
    ]
    assert found == expected
    assert len(deployment.read(deployment.recommendations)) == sum(ends) + 1 - len(expected)

    settings = KafkaSettings.model_validate(deployment.settings())
    start, end = {0: 0, 5: 0}, {0: ends[0], 5: ends[5]}
    passed_over: list[Unreadable] = []
    read = read_committed(settings, deployment.clicks, start, end, passed_over=passed_over)
    places = sorted((m.partition(), m.offset()) for messages in read for m in messages)
    assert places == [(0, 0), (0, 2), (5, 0), (5, 1), (5, 2), (5, 5)]
    assert sorted(found[:2] for found in passed_over) == [(0, range(1, 2)), (5, range(3, 5))]


MISNUMBERED = {
    # The batch, how many offsets it has, and which of them are answered.
    "beyond the log's end": (batch_of(record(b"s", CLICK, number=1000), 1), 1, []),
    "in the next batch": (batch_of(record(b"s", CLICK, number=1), 1), 1, []),
    "before the batch": (batch_of(record(b"s", CLICK, number=-1), 1), 1, []),
    "in the wrong order": (
        batch_of(record(b"s", CLICK, number=1) + record(b"s", CLICK), 2),
        *(2, []),
    ),
    "the same twice": (batch_of(record(b"s", CLICK) + record(b"s", CLICK), 2), 2, [0]),
    "the second of three": (
        batch_of(
            PAIR[: len(PAIR) // 2] + record(b"s", CLICK, number=50) + record(b"s", CLICK, number=2),
            3,
        ),
        *(3, [0]),
    ),
}
"""Records that say they stand elsewhere than they do: a broker takes them."""


def test_records_that_lie_about_their_offsets_cost_their_own_batch_and_nothing_else(
    deployment: Deployment,
) -> None:
    deployment.app += "-misnumbered"
    deployment.create_topics(partitions=len(MISNUMBERED) + 1)
    worker = deployment.start()
    raw = RawProducer(deployment.bootstrap_servers)
    n_good = 30
    for partition, (batch, _, _) in enumerate(MISNUMBERED.values()):
        raw.send(deployment.clicks, partition, one_record(b"s", CLICK))
        raw.send(deployment.clicks, partition, batch)
    raw.close()
    ends = [1 + n for _, n, _ in MISNUMBERED.values()]
    deployment.send([(b"s", CLICK)] * n_good, partition=len(MISNUMBERED))  # is not held up
    deployment.wait_until_answered(n_good + len(MISNUMBERED))
    for partition in range(len(MISNUMBERED)):
        deployment.send([(b"s", CLICK)] * n_good, partition=partition)
    deployment.wait_until_answered(n_good * (len(MISNUMBERED) + 1) + sum(ends))
    assert worker.process.poll() is None, worker.log()
    letters = deployment.read(deployment.dead_letters)
    assert {r.headers["reason"] for r in letters} == {b"unreadable"}
    found = sorted((int(r.headers["partition"]), int(r.headers["offset"])) for r in letters)
    assert found == [
        (p, 1 + n)
        for p, (_, n_offsets, answered) in enumerate(MISNUMBERED.values())
        for n in range(n_offsets)
        if n not in answered
    ]
    n_answers = n_good * (len(MISNUMBERED) + 1) + sum(ends) - len(found)
    assert len(deployment.read(deployment.recommendations)) == n_answers


def abort_a_click(deployment: Deployment) -> None:
    """Leave an aborted click and its marker at the begin of partition 0.

    The broker says that the transaction is aborted before it has written the marker.
    """
    shop = Producer({"bootstrap.servers": deployment.bootstrap_servers, "transactional.id": "shop"})
    shop.init_transactions(30)
    shop.begin_transaction()
    shop.produce(deployment.clicks, CLICK, b"s", partition=0)
    shop.flush(30)
    shop.abort_transaction(30)
    settings = KafkaSettings.model_validate(deployment.settings())
    wait_for(lambda: bounds(settings, deployment.clicks, [0])[0][1] == 2, 30, "the marker")


def lz4_with_more_behind(plain: bytes) -> bytes:
    """One frame, of one block that is not compressed, and what librdkafka calls a bad message."""
    block = struct.pack("<I", 0x80000000 | len(plain)) + plain
    return bytes.fromhex("04224d18604082") + block + bytes(4) + b"more"


@pytest.mark.parametrize(
    ("batch", "n_records"),
    [
        UNPARSABLE["record that says it is longer"][:2],
        (batch_of(lz4_with_more_behind(PAIR), 2, codec=3), 2),
    ],
    ids=["unparsable", "lz4-with-more-behind"],
)
def test_a_batch_that_cannot_be_read_behind_a_marker_stops_nothing(
    deployment: Deployment, batch: bytes, n_records: int
) -> None:
    """The marker is a hole, which is looked at: up to the batch, which nobody gets past."""
    worker = deployment.start()
    raw = RawProducer(deployment.bootstrap_servers)
    abort_a_click(deployment)
    raw.send(deployment.clicks, 0, batch)
    raw.send(deployment.clicks, 0, one_record(b"s", CLICK))
    raw.close()
    deployment.wait_until_answered(2 + n_records + 1)
    assert worker.process.poll() is None
    letters = deployment.read(deployment.dead_letters)
    assert [r.headers["offset"] for r in letters] == [b"2", b"3"]
    assert len(deployment.read(deployment.recommendations)) == 1


def test_a_batch_at_which_the_client_aborts_ends_one_worker_and_not_the_next(
    deployment: Deployment,
) -> None:
    worker = deployment.start()
    raw = RawProducer(deployment.bootstrap_servers)
    empty_first = gzip_member(b"") + gzip_member(PAIR)
    # Behind an aborted click, in a fetch with clicks before it and after it.
    abort_a_click(deployment)
    for batch in (batch_of(PAIR, 2), batch_of(empty_first, 2, codec=1), one_record(b"s", CLICK)):
        raw.send(deployment.clicks, 0, batch)
    raw.close()
    assert worker.wait_for_exit(60) == -signal.SIGABRT, worker.log()
    worker = deployment.start()
    deployment.wait_until_answered(2 + 2 + 2 + 1)
    assert worker.process.poll() is None, worker.log()
    letters = deployment.read(deployment.dead_letters)
    assert [r.headers["offset"] for r in letters] == [b"4", b"5"]
    answers = deployment.read(deployment.recommendations)
    assert sorted(r.headers["source"][-2:] for r in answers) == [b"-2", b"-3", b"-6"]


def test_batches_at_which_the_client_aborts_are_found_in_all_that_is_fetched_ahead(
    deployment: Deployment,
) -> None:
    """Each worker's client would fetch them before the first click is answered."""
    n_clicks = 40
    shop = Producer({"bootstrap.servers": deployment.bootstrap_servers, "linger.ms": 0})
    for _ in range(n_clicks):
        headers: list[tuple[str, str | bytes | None]] = [("padding", b"x" * 100_000)]
        shop.produce(deployment.clicks, CLICK, b"s", partition=0, headers=headers)
        shop.flush(30)
    raw = RawProducer(deployment.bootstrap_servers)
    deadly = batch_of(gzip_member(b"") + gzip_member(PAIR), 2, codec=1)
    for batch in (deadly, one_record(b"s", CLICK), deadly, deadly, one_record(b"s", CLICK)):
        raw.send(deployment.clicks, 0, batch)
    raw.close()
    worker = deployment.start()
    deployment.wait_until_answered(n_clicks + 3 * 2 + 2)
    assert worker.process.poll() is None, worker.log()
    assert worker.log().count("unreadable_batch") == 3
    letters = deployment.read(deployment.dead_letters)
    assert [int(r.headers["offset"]) for r in letters] == [40, 41, 43, 44, 45, 46]
    assert len(deployment.read(deployment.recommendations)) == n_clicks + 2


def test_a_large_batch_that_cannot_be_decompressed_is_passed_over_at_once(
    deployment: Deployment,
) -> None:
    n_records = 20_000
    worker = deployment.start(bad_click_run_limit="1000000", bad_click_share_limit="1.0")
    producer = Producer(
        {
            "bootstrap.servers": deployment.bootstrap_servers,
            "compression.type": "zstd",
            "linger.ms": 60_000,
            "batch.size": 500_000_000,
            "batch.num.messages": n_records,
            "message.max.bytes": 500_000_000,
        }
    )
    for _ in range(n_records):
        producer.produce(deployment.clicks, b"x" * 6_000, b"s", partition=0)
    producer.flush(60)
    began = time.monotonic()
    deployment.send([(b"s", CLICK)], partition=0)
    deployment.wait_until_answered(n_records + 1)
    took_s = time.monotonic() - began
    assert worker.log().count("unreadable_batch") == 1, "one batch"
    letters = deployment.read(deployment.dead_letters)
    assert [int(r.headers["offset"]) for r in letters] == [*range(n_records)]
    assert {r.headers["reason"] for r in letters} == {b"unreadable"}
    assert len(deployment.read(deployment.recommendations)) == 1
    assert took_s < 60, "by itself, each offset took an eighth of a second"
