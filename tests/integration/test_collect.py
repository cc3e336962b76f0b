"""``collect`` on a real broker: ranges, transactions, holes, a kill in the middle."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from bench.faults.traffic import click, produce
from bench.faults.wire import RawProducer, batch_of, record
from deploy.processes import wait_for
from train.command import TrainError
from train.data import collect as module
from train.data.clicks import read_clicks
from train.data.collect import CollectSettings, collect
from train.data.parts import STATE, CollectState

ROOT = Path(__file__).parents[2]
BEGIN_MS = 1_700_000_000_000


@pytest.fixture
def topic(kafka: str, fresh_name: Callable[[str], str]) -> str:
    name = fresh_name("clicks")
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(name, 2, 1)])[name].result(30)
    return name


def clicks_of(numbers: Sequence[int]) -> list[tuple[bytes, bytes]]:
    """A click a number, two sessions, items and events named by it."""
    return [
        (b"s%d" % (n % 2), click(f"s{n % 2}", f"item-{n}", BEGIN_MS + n, f"event-{n}"))
        for n in numbers
    ]


def items(folder: Path) -> list[int]:
    found = pl.read_parquet(folder / "*.parquet")["item_id"]
    return sorted(int(item.removeprefix("item-")) for item in found)


def settings(kafka: str, topic: str, out: Path, **more: object) -> CollectSettings:
    given = {"bootstrap_servers": kafka, "topic": topic, "out": out, **more}
    return CollectSettings.model_validate(given)


def test_what_is_new_is_added_and_nothing_is_doubled(
    kafka: str, topic: str, tmp_path: Path
) -> None:
    produce(kafka, topic, clicks_of(range(100)), partition=0)
    produce(kafka, topic, [(b"s1", b"{"), *clicks_of([100, 101, 101])], partition=1)
    wanted = settings(kafka, topic, tmp_path)
    first = collect(wanted)
    assert (first.clicks, first.repeated, first.refused) == (102, 1, {"not_json": 1})
    assert collect(wanted) == first
    produce(kafka, topic, clicks_of(range(95, 110)), partition=0)
    second = collect(wanted)
    assert (second.clicks, second.repeated) == (112, 6)
    assert items(tmp_path) == sorted([*range(102), *range(100, 110)])
    log = read_clicks(tmp_path, keep=("event_id",))
    assert log.rejected == {}
    assert log.clicks["session_id"].unique().sort().to_list() == ["s0", "s1"]


def test_a_topic_that_was_made_anew_is_refused_however_long_it_has_become(
    kafka: str, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    topic, admin = fresh_name("anew"), AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    produce(kafka, topic, clicks_of(range(20)), partition=0)
    wanted = settings(kafka, topic, tmp_path)
    collect(wanted)
    admin.delete_topics([topic])[topic].result(30)
    wait_for(lambda: topic not in admin.list_topics(timeout=10).topics, 30, "the deletion")
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    produce(kafka, topic, clicks_of(range(100, 150)), partition=0)
    with pytest.raises(TrainError, match="created again; choose another folder"):
        collect(wanted)
    assert items(tmp_path) == list(range(20))


def test_a_folder_that_knows_no_topic_id_goes_on_and_learns_it(
    kafka: str, topic: str, tmp_path: Path
) -> None:
    produce(kafka, topic, clicks_of(range(20)), partition=0)
    wanted = settings(kafka, topic, tmp_path)
    now = collect(wanted)
    assert now.begin.topic_id is not None
    written = json.loads((tmp_path / STATE).read_text())
    del written["begin"]["topic_id"]
    (tmp_path / STATE).write_text(json.dumps(written))
    assert collect(wanted) == now
    assert CollectState.model_validate_json((tmp_path / STATE).read_bytes()) == now


def test_late_clicks_are_read_in_the_order_in_which_they_stand_in_the_topic(
    kafka: str, topic: str, tmp_path: Path
) -> None:
    said = [("x", 0), ("y", 5000), ("late", 3000), ("z", 9000)]
    clicks = [(b"s", click("s", item, BEGIN_MS + after_ms)) for item, after_ms in said]
    produce(kafka, topic, clicks[:3])
    collect(settings(kafka, topic, tmp_path), part_clicks=2)
    produce(kafka, topic, clicks[3:])
    collect(settings(kafka, topic, tmp_path))
    log = read_clicks(tmp_path).clicks
    assert log["item_id"].to_list() == ["x", "y", "late", "z"]
    assert (log["timestamp_ms"] - BEGIN_MS).to_list() == [0, 5000, 5000, 9000]


def test_a_range_of_offsets_or_of_time_is_all_that_is_read(
    kafka: str, topic: str, tmp_path: Path
) -> None:
    produce(kafka, topic, clicks_of(range(50)), partition=0)
    by_offset = settings(
        kafka, topic, tmp_path / "a", from_offsets={0: 10}, to_offsets={0: 20, 1: 0}
    )
    collect(by_offset)
    assert items(tmp_path / "a") == list(range(10, 20))
    between = datetime.now(UTC)
    wait_for(lambda: datetime.now(UTC).timestamp() > between.timestamp() + 0.01, 5, "the clock")
    produce(kafka, topic, clicks_of(range(50, 60)), partition=0)
    collect(settings(kafka, topic, tmp_path / "b", since=between))
    assert items(tmp_path / "b") == list(range(50, 60))
    collect(settings(kafka, topic, tmp_path / "c", until=between))
    assert items(tmp_path / "c") == list(range(50))
    with pytest.raises(TrainError, match="from_offsets"):
        collect(settings(kafka, topic, tmp_path / "a"))
    with pytest.raises(TrainError, match="ends at 60, before 61"):
        collect(settings(kafka, topic, tmp_path / "d", from_offsets={0: 61}))
    with pytest.raises(TrainError, match="to_offsets names partition 2"):
        collect(settings(kafka, topic, tmp_path / "d", to_offsets={2: 1}))


def test_aborted_clicks_are_left_out_and_an_open_transaction_is_waited_for_by_the_next_run(
    kafka: str, topic: str, tmp_path: Path
) -> None:
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": topic})
    producer.init_transactions(30)
    for numbers, ends in ((range(5), "commit"), (range(5, 10), "abort"), (range(10, 15), "open")):
        producer.begin_transaction()
        for key, value in clicks_of(numbers):
            producer.produce(topic, value, key, partition=0)
        producer.flush(30)
        if ends == "commit":
            producer.commit_transaction(30)
        elif ends == "abort":
            producer.abort_transaction(30)
    wanted = settings(kafka, topic, tmp_path)
    wait_for(lambda: collect(wanted).clicks == 5, 30, "the committed clicks")
    assert items(tmp_path) == list(range(5))
    producer.commit_transaction(30)
    wait_for(lambda: collect(wanted).clicks == 10, 30, "the other transaction")
    assert items(tmp_path) == [*range(5), *range(10, 15)]
    # The topic ends with the marker of a transaction, which no reader is given.
    state = CollectState.model_validate_json((tmp_path / STATE).read_bytes())
    assert state.next_offset == {0: 18}


def test_a_killed_run_goes_on_and_gives_the_rows_of_an_unbroken_one(
    kafka: str, topic: str, tmp_path: Path
) -> None:
    for partition in (0, 1):
        numbers = range(partition * 100_000, partition * 100_000 + 20_000)
        repeated = [n - n % 7 for n in numbers]
        produce(kafka, topic, clicks_of(repeated), partition=partition)
    script = (
        "import json, sys; from pathlib import Path; from train.data.collect import *;"
        f"collect(CollectSettings(bootstrap_servers={kafka!r}, topic={topic!r}, "
        f"out=Path({str(tmp_path / 'broken')!r})), part_clicks=300)"
    )
    run = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    part = tmp_path / "broken" / "clicks-000002.parquet"
    wait_for(part.exists, 60, "the third part")
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait(30) == -signal.SIGKILL
    reached = json.loads((tmp_path / "broken" / STATE).read_text())["next_offset"]
    assert sum(reached.values()) < 40_000
    state = collect(settings(kafka, topic, tmp_path / "broken"), part_clicks=300)
    whole = collect(settings(kafka, topic, tmp_path / "whole"))
    assert state.model_dump(exclude={"parts"}) == whole.model_dump(exclude={"parts"})
    assert (whole.clicks, whole.parts) == (2 * 2858, 1)
    by_offset = ("kafka_partition", "kafka_offset")
    broken_rows = pl.read_parquet(tmp_path / "broken" / "*.parquet").sort(by_offset)
    assert broken_rows.equals(pl.read_parquet(tmp_path / "whole" / "*.parquet").sort(by_offset))


def test_what_cannot_be_collected_is_one_sentence(kafka: str, topic: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="topic absent"):
        collect(settings(kafka, "absent", tmp_path))
    properties = tmp_path / "client.properties"
    properties.write_text("# ours\nsecurity.protocol=PLAINTEXT\nno.such.option=1\n")
    with pytest.raises(TrainError, match=r"client\.properties.*no\.such\.option"):
        collect(settings(kafka, topic, tmp_path, client_properties=properties))
    properties.write_text(f"bootstrap.servers = {kafka}\n")
    found = CollectSettings(topic=topic, out=tmp_path / "log", client_properties=properties)
    assert collect(found).clicks == 0
    properties.write_text("secret\n")
    with pytest.raises(TrainError, match="option 1 is not of the form name=value") as raised:
        collect(settings(kafka, topic, tmp_path, client_properties=properties))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("ill", ["key", "zstd", "ahead", "behind"])
def test_a_batch_that_the_client_cannot_read_is_named_and_can_be_gone_round(
    kafka: str, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ill: str
) -> None:
    monkeypatch.setattr(module, "STALLED_S", 3.0)
    produce(kafka, topic, clicks_of(range(20)), partition=0)
    if ill == "zstd":
        produce(kafka, topic, [(b"s", bytes(300_000_000))], partition=0, compression="zstd")
    else:
        key, good = clicks_of([30])[0]
        batches = {
            "key": record(b"", b"value", key_length=-2),
            "ahead": record(key, good, number=1000),
            "behind": record(key, good, number=-1),
        }
        raw = RawProducer(kafka)
        raw.send(topic, 0, batch_of(batches[ill], 1))
        raw.close()
    produce(kafka, topic, clicks_of(range(20, 30)), partition=0)
    said = {
        "key": "nothing in 3 s.* at offset 20",
        "zstd": "Decompression.* at offset 20",
        "ahead": "it is at 1020' at offset 20",
        "behind": "it is at 19' at offset 19",
    }[ill]
    with pytest.raises(TrainError, match=f"{said}; .*--to-offsets 0="):
        collect(settings(kafka, topic, tmp_path / "a"))
    collect(settings(kafka, topic, tmp_path / "a", to_offsets={0: 20}))
    collect(settings(kafka, topic, tmp_path / "b", from_offsets={0: 21}))
    assert items(tmp_path / "a") + items(tmp_path / "b") == [*range(30)]
