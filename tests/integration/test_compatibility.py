"""Topics and folders that 8ec5a42 left are gone on with (see tests/compatibility/README.md)."""

import base64
import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import polars as pl
import pytest

from bench.faults.service import Deployment
from bench.faults.traffic import produce, session_load
from bench.faults.verdict import verdict
from stream.position import POSITION_KEY, decode_position, encode_position
from train.data.collect import CollectSettings, collect

OLD = Path(__file__).parents[1] / "compatibility/8ec5a42"
N_CLICKS, N_NEXT = 166, 10


@pytest.fixture
def left_behind(
    kafka: str, fresh_name: Callable[[str], str], tmp_path: Path
) -> Iterator[Deployment]:
    """The clicks topic as that version left it; the other topics are empty, and no worker runs."""
    deployment = Deployment(kafka, fresh_name("old"), OLD / "context/bundle", tmp_path)
    deployment.create_topics(partitions=2)
    send_clicks(deployment, "clicks.jsonl")
    yield deployment
    deployment.close()


def send_clicks(deployment: Deployment, file: str) -> None:
    for partition in (0, 1):
        rows = [json.loads(line) for line in (OLD / file).read_text().splitlines()]
        clicks = [(r[2].encode(), r[3].encode()) for r in rows if r[0] == partition]
        deployment.send(clicks, partition=partition)


def topic_id(deployment: Deployment) -> str:
    """The clicks topic's id, as `collect` writes it down."""
    settings = CollectSettings(
        bootstrap_servers=deployment.bootstrap_servers,
        topic=deployment.clicks,
        out=deployment.log_dir / "probe",
    )
    found = collect(settings).begin.topic_id
    assert found is not None
    return found


def test_a_worker_answers_the_next_clicks_from_the_sessions_in_the_changelog(
    left_behind: Deployment,
) -> None:
    # Positions name their topic by its id, which Kafka gives anew.
    new_id = topic_id(left_behind)
    for partition in (0, 1):
        records = []
        for line in (OLD / "changelog.jsonl").read_text().splitlines():
            of, _, key, value = json.loads(line)
            raw = base64.b64decode(value)
            if base64.b64decode(key) == POSITION_KEY:
                position = msgspec.structs.replace(decode_position(raw), topic_id=new_id)
                raw = encode_position(position)
            if of == partition:
                records.append((base64.b64decode(key), raw))
        produce(left_behind.bootstrap_servers, left_behind.changelog, records, partition=partition)
    send_clicks(left_behind, "next-clicks.jsonl")
    left_behind.start()
    left_behind.wait_until_answered(N_CLICKS + N_NEXT)
    found = left_behind.read(left_behind.recommendations)
    expected = json.loads((OLD / "answers.json").read_text())
    assert len(found) == len(expected) == N_NEXT
    for record, before in zip(found, expected, strict=True):
        answer = json.loads(record.value or b"")
        assert (answer["session_id"], answer["outcome"]) == (before["session_id"], "model")
        assert [i["item_id"] for i in answer["items"]] == [i["item_id"] for i in before["items"]]
        scores = [item["score"] for item in before["items"]]
        assert [item["score"] for item in answer["items"]] == pytest.approx(scores, abs=1e-5)


def test_collect_adds_what_is_new_to_its_folder(left_behind: Deployment, tmp_path: Path) -> None:
    out = tmp_path / "log"
    shutil.copytree(OLD / "collected", out)
    settings = CollectSettings(
        bootstrap_servers=left_behind.bootstrap_servers, topic=left_behind.clicks, out=out
    )
    # The folder is of another cluster and another topic: name these instead.
    here = collect(settings.model_copy(update={"out": tmp_path / "other"}))
    state = json.loads((out / "collect.json").read_text())
    state["begin"] |= json.loads(here.begin.model_dump_json())
    (out / "collect.json").write_text(json.dumps(state))
    assert collect(settings) == here
    send_clicks(left_behind, "next-clicks.jsonl")
    assert collect(settings).clicks == here.clicks + N_NEXT
    rows = pl.read_parquet(out / "*.parquet")
    assert rows.equals(rows.unique(["kafka_partition", "kafka_offset"], maintain_order=True))
    assert len(rows) == 164 + N_NEXT


def test_workers_of_the_former_state_format_may_run_beside_those_of_todays(
    deployment: Deployment,
) -> None:
    clicks = list(session_load(9000))
    older = deployment.start("former_state_format")
    load = threading.Thread(
        target=deployment.send, args=(clicks[:6000],), kwargs={"per_second": 300}
    )
    load.start()
    deployment.wait_until_answered(1500)
    newer = deployment.start()  # takes over two partitions with sessions of the former format
    n_answered = sum(position.next_offset for position in deployment.positions().values())
    deployment.wait_until_answered(min(6000, n_answered + 900))
    older.end(signal.SIGTERM)
    assert older.wait_for_exit() == 0
    newer.wait_until_ready()
    # One that comes back is given partitions that it cannot read: it ends, and the rest goes on.
    again = deployment.start("former_state_format", wait=False)
    assert again.wait_for_exit() == 2
    assert "session state has format 2, but this version reads 1" in again.log()
    load.join()
    # A click for each session: format 1 does not say when a repeat was seen.
    deployment.send(clicks[6000:])
    deployment.wait_until_answered(9000)
    assert newer.process.poll() is None
    changelog = deployment.read(deployment.changelog)
    assert {r.value[0] for r in changelog if r.value and r.key != POSITION_KEY} == {1, 2}
    found = verdict(deployment)
    assert found.exact, str(found)
