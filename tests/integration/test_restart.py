"""Restarts, deployments that are wrong, and what must survive them."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import onnx
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic
from onnx import TensorProto, numpy_helper

from bench.faults.service import Deployment
from bench.faults.traffic import LOG_BEGIN_MS, Reader, click, produce, session_load
from bench.faults.verdict import sessions_in_changelog, verdict
from bench.faults.wire import RawProducer, batch_of, record
from bench.serving.bundles import write_tiny_bundle
from deploy.processes import wait_for
from export.graph import Graph, value_info
from stream.model.bundle import load_bundle, write_bundle
from stream.position import POSITION_KEY
from stream.session import decode_state
from train.data.context import ContextField

HOUR_MS = 3_600_000


def move_group_to(deployment: Deployment, offset: int) -> None:
    """Move the group's committed offsets, as an operator's tool would."""
    admin = AdminClient({"bootstrap.servers": deployment.bootstrap_servers})
    request = ConsumerGroupTopicPartitions(
        deployment.app, [TopicPartition(deployment.clicks, p, offset) for p in range(4)]
    )
    admin.alter_consumer_group_offsets([request])[deployment.app].result(20)


@pytest.mark.parametrize("guards", [(), ("position",)], ids=["whole", "broken"])
def test_redelivered_dead_letters_and_expired_sessions_are_skipped(
    deployment: Deployment, guards: tuple[str, ...]
) -> None:
    clicks: list[tuple[bytes | None, bytes | None]] = [
        (b"old", click("old", "item-1", LOG_BEGIN_MS)),
        (b"old", b"no click"),
        (b"old", click("old", "item-2", LOG_BEGIN_MS + 1)),
        (b"new", click("new", "item-3", LOG_BEGIN_MS + HOUR_MS)),
        (b"new", click("new", "item-4", LOG_BEGIN_MS + HOUR_MS + 1)),
    ]
    first = deployment.start(batch_clicks="1")
    deployment.send(clicks, partition=0)
    deployment.wait_until_answered(len(clicks))
    first.process.terminate()
    assert first.wait_for_exit() == 0
    assert {key for _, key in sessions_in_changelog(deployment)} == {b"new"}
    move_group_to(deployment, 0)
    # All five come again, below the position.
    again = deployment.start("seek_to_the_beginning", *guards)
    deployment.send([(b"new", click("new", "item-5", LOG_BEGIN_MS + HOUR_MS + 2))], partition=0)
    wait_for(
        lambda: (
            deployment.positions()[0].next_offset == 6 and again.metric("recs_batch_clicks_sum") > 0
        ),
        60,
        "the last click",
    )
    exact = (
        again.metric("recs_skipped_clicks_total") == len(clicks)
        and len(deployment.read(deployment.dead_letters)) == 1
        and verdict(deployment).exact
    )
    assert exact != bool(guards)


def test_the_position_record_decides_and_not_the_groups_offset(deployment: Deployment) -> None:
    first = deployment.start()
    deployment.send([(b"s", click("s", f"item-{n}", LOG_BEGIN_MS + n)) for n in range(20)])
    deployment.wait_until_answered(20)
    first.process.terminate()
    assert first.wait_for_exit() == 0
    deployment.send([(b"s", click("s", f"item-{n}", LOG_BEGIN_MS + n)) for n in range(20, 40)])
    move_group_to(deployment, 0)
    second = deployment.start()
    deployment.wait_until_answered(40)
    assert second.metric("recs_skipped_clicks_total") == 0, "the seek went to the group's offset"
    assert verdict(deployment).exact


def test_a_partition_without_clicks_keeps_its_position_and_is_collected_at_its_next_click(
    kafka: str, deployment: Deployment, tmp_path: Path
) -> None:
    deployment.bundle = write_tiny_bundle(
        tmp_path / "short",
        n_items=50,
        hidden_size=8,
        k=20,
        idle_timeout_s=60,
        allowed_lateness_s=0,
    )
    worker = deployment.start()
    for n in range(50):
        name = f"s{n}"
        deployment.send([(name.encode(), click(name, "item-1", LOG_BEGIN_MS + n))], partition=0)
    deployment.send([(b"busy", click("busy", "item-1", LOG_BEGIN_MS))], partition=1)
    # Three idle timeouts pass in the log of partition 1; partition 0 has no click.
    deployment.send(
        [(b"busy", click("busy", "item-2", LOG_BEGIN_MS + n * 30_000)) for n in range(1, 7)],
        partition=1,
    )
    deployment.wait_until_answered(57)
    worker.process.terminate()
    assert worker.wait_for_exit() == 0
    deployment.start()
    assert sum(p == 0 for p, _ in sessions_in_changelog(deployment)) == 50
    deployment.send([(b"late", click("late", "item-3", LOG_BEGIN_MS + 180_000))], partition=0)
    deployment.send([(b"late", click("late", "item-3", LOG_BEGIN_MS + 180_001))], partition=0)
    deployment.wait_until_answered(59)
    assert {key for p, key in sessions_in_changelog(deployment) if p == 0} == {b"late"}


def test_a_start_and_a_restart_with_an_empty_changelog_answer_from_the_first_click(
    deployment: Deployment,
) -> None:
    first = deployment.start()
    first.process.terminate()
    assert first.wait_for_exit() == 0
    deployment.send([(b"s", click("s", "item-1", LOG_BEGIN_MS))])
    deployment.start()
    deployment.wait_until_answered(1)
    assert verdict(deployment).exact


def recreate(deployment: Deployment, topic: str, **config: str) -> None:
    admin = AdminClient({"bootstrap.servers": deployment.bootstrap_servers})
    admin.delete_topics([topic])[topic].result(20)
    wait_for(lambda: topic not in admin.list_topics(timeout=10).topics, 30, "a deleted topic")
    admin.create_topics([NewTopic(topic, 4, 1, config=config)])[topic].result(20)


def answered_and_stopped(deployment: Deployment) -> None:
    worker = deployment.start()
    deployment.send([(b"s", click("s", f"item-{n}", LOG_BEGIN_MS + n)) for n in range(5)])
    deployment.wait_until_answered(5)
    worker.process.terminate()
    assert worker.wait_for_exit() == 0


def test_a_lost_changelog_stops_the_start_and_a_reset_goes_on(deployment: Deployment) -> None:
    answered_and_stopped(deployment)
    recreate(deployment, deployment.changelog, **{"cleanup.policy": "compact"})
    worker = deployment.start(wait=False)
    assert worker.wait_for_exit() == 2, worker.log()
    assert "the changelog was lost" in worker.log()
    wait_for(lambda: deployment.command("reset", "--to", "latest").returncode == 0, 30, "a reset")
    deployment.start()
    deployment.send([(b"s", click("s", "item-7", LOG_BEGIN_MS + 7))])
    deployment.wait_until_answered(6)
    assert len(deployment.read(deployment.recommendations)) == 6


def test_what_a_stranger_writes_to_the_changelog_holds_up_its_partition_until_a_reset(
    deployment: Deployment,
) -> None:
    clicks = [(b"s", click("s", f"item-{n}", LOG_BEGIN_MS + n)) for n in range(10)]
    worker = deployment.start()
    for partition in (0, 1):
        deployment.send(clicks[:5], partition=partition)
    deployment.wait_until_answered(10)
    worker.process.terminate()
    assert worker.wait_for_exit() == 0
    garbage = [(b"gone", b"garbage"), (b"\xff", b"garbage"), (POSITION_KEY, b"xyz")]
    produce(
        deployment.bootstrap_servers,
        deployment.changelog,
        [*garbage, (b"gone", None)],
        partition=0,
    )
    raw = RawProducer(deployment.bootstrap_servers)
    offset = raw.send(deployment.changelog, 0, batch_of(record(b"z", b"", value_length=-2), 1))
    raw.close()
    for partition in (0, 1):
        deployment.send(clicks[5:], partition=partition)

    def n_answers() -> int:
        return len(deployment.read(deployment.recommendations))

    worker = deployment.start(wait=False)
    wait_for(lambda: n_answers() == 15, 60, "the other partition's answers")
    wait_for(lambda: worker.log().count('"restore_repeated"') > 1, 60, "another try")
    assert f"{deployment.changelog}-0 holds what is not ours: offset {offset} lies" in worker.log()
    assert worker.process.poll() is None
    assert worker.get("/ready")[0] == 503
    resumed = deployment.command("resume", "--partition", "0")
    assert resumed.returncode == 2
    assert f"{deployment.changelog}-0 holds what is not ours" in resumed.stderr
    assert n_answers() == 15
    worker.process.terminate()
    assert worker.wait_for_exit() == 0

    done = deployment.command("reset", "--partition", "0", "--to", "5")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == ("partition 0: continues at offset 5, 2 sessions dropped (1 could not be read)")
    assert second.startswith(f"partition 0: gives up what offsets {offset} to {offset} of ")
    for _ in range(2):  # the second one finds the first one's position
        worker = deployment.start()
        wait_for(lambda: n_answers() == 20, 60, "this partition's answers, too")
        worker.process.terminate()
        assert worker.wait_for_exit() == 0

    # Without a position, too, and where the good sessions stay.
    more = [(b"\xff", b"garbage"), (POSITION_KEY, None)]
    produce(deployment.bootstrap_servers, deployment.changelog, more, partition=0)
    done = deployment.command("reset", "--partition", "0", "--to", "latest")
    assert done.stdout.startswith(
        "partition 0: continues at offset 10, 1 sessions dropped (1 could not be read)\n"
    ), done.stderr
    deployment.send([(b"s", click("s", "item-10", LOG_BEGIN_MS + 10))], partition=0)
    worker = deployment.start()
    wait_for(lambda: n_answers() == 21, 60, "the session's next answer")
    assert worker.metric("recs_begun_sessions_total") == 0, "it goes on"


def test_a_clicks_topic_made_anew_stops_the_start_and_a_reset_goes_on(
    deployment: Deployment,
) -> None:
    answered_and_stopped(deployment)
    recreate(deployment, deployment.clicks, **{"message.timestamp.type": "LogAppendTime"})
    worker = deployment.start(wait=False)
    assert worker.wait_for_exit() == 2, worker.log()
    assert "the topic was deleted and recreated" in worker.log()
    wait_for(lambda: deployment.command("reset", "--to", "earliest").returncode == 0, 30, "a reset")
    deployment.start()
    deployment.send([(b"s", click("s", "item-7", LOG_BEGIN_MS + 7))])
    wait_for(lambda: len(deployment.read(deployment.recommendations)) == 6, 30, "the sixth answer")
    (raw,) = sessions_in_changelog(deployment).values()
    assert decode_state(raw).n_clicks == 6, "another topic's session goes on"


def test_a_reset_to_the_beginning_replays_the_log_as_it_was_answered_at_first(
    deployment: Deployment,
) -> None:
    """With sessions that the watermark ends: under the old one they would never end again."""
    later_ms = LOG_BEGIN_MS + HOUR_MS
    clicks = [
        *session_load(300),
        (b"s", click("s", "item-1", LOG_BEGIN_MS)),
        (b"t", click("t", "item-2", later_ms)),
        (b"s", click("s", "item-3", LOG_BEGIN_MS + 1)),
        *session_load(300, seed=2),
    ]
    first = deployment.start()
    deployment.send(clicks, partition=0)
    deployment.wait_until_answered(len(clicks))
    assert first.metric("recs_expired_sessions_total") > 100
    first.process.terminate()
    assert first.wait_for_exit() == 0
    assert verdict(deployment).exact
    live = sessions_in_changelog(deployment)
    assert deployment.command("reset", "--to", "latest").returncode == 0
    assert sessions_in_changelog(deployment) == live, "nothing is read again"
    assert deployment.positions()[0].watermark_ms == later_ms
    done = deployment.command("reset", "--to", "earliest")
    assert f"partition 0: continues at offset 0, {len(live)} sessions dropped\n" in done.stdout
    assert sessions_in_changelog(deployment) == {}
    assert "partition 1: continues at offset 0\n" in done.stdout
    deployment.start()
    answers: dict[bytes, list[object]] = {}
    with Reader(deployment.bootstrap_servers, deployment.recommendations) as reader:

        def all_twice() -> bool:
            for record in reader.stored():
                answer = json.loads(record.value or b"")
                said = answer["outcome"], [item["item_id"] for item in answer["items"]]
                answers.setdefault(record.headers["source"], []).append(said)
            return sum(map(len, answers.values())) == 2 * len(clicks)

        wait_for(all_twice, 60, "every click's second answer")
    assert len(answers) == len(clicks)
    for one, other in answers.values():
        assert one == other
    found = verdict(deployment)
    assert (found.different, found.wrong_states, found.duplicates) == (0, 0, len(clicks))


def test_partitions_added_to_the_clicks_alone_stop_a_running_worker(
    deployment: Deployment,
) -> None:
    worker = deployment.start()
    admin = AdminClient({"bootstrap.servers": deployment.bootstrap_servers})
    admin.create_partitions([NewPartitions(deployment.clicks, 5)])[deployment.clicks].result(20)
    assert worker.wait_for_exit(60) == 2, worker.log()
    assert f"{deployment.changelog} has 4 partitions, {deployment.clicks} has 5" in worker.log()


def test_a_reset_is_refused_while_a_worker_runs_and_outside_the_log(
    deployment: Deployment,
) -> None:
    worker = deployment.start()
    refused = deployment.command("reset", "--to", "earliest")
    assert refused.returncode == 2
    assert "stop the workers first" in refused.stderr
    worker.process.terminate()
    assert worker.wait_for_exit() == 0
    outside = deployment.command("reset", "--to", "99")
    assert outside.returncode == 2
    assert f"offset 99 is outside {deployment.clicks}-0, which holds 0 to 0" in outside.stderr


def refusal(deployment: Deployment, **settings: str) -> str:
    """One sentence on stderr, exit code 2, no traceback."""
    worker = deployment.start(wait=False, **settings)
    assert worker.wait_for_exit() == 2, worker.log()
    sentence = worker.log().splitlines()[-1]
    assert "Traceback" not in worker.log()
    return sentence


def test_missing_topics_stop_the_start(deployment: Deployment) -> None:
    deployment.app += "-nowhere"
    assert refusal(deployment).startswith(f"missing topics: {deployment.clicks}, ")
    assert deployment.command("topics", "check").returncode == 2


def test_a_changelog_of_other_partitions_stops_the_start(deployment: Deployment) -> None:
    admin = AdminClient({"bootstrap.servers": deployment.bootstrap_servers})
    deployment.app += "-wrong"
    admin.create_topics([NewTopic(deployment.changelog, 3, 1)])[deployment.changelog].result(20)
    done = deployment.command("topics", "create")
    assert done.returncode == 2
    sentence = refusal(deployment)
    assert f"{deployment.changelog} has 3 partitions, {deployment.clicks} has 4" in sentence
    assert "cleanup.policy=delete, expected compact only" in sentence


def test_a_wrong_bundle_stops_the_start(deployment: Deployment, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / deployment.bundle.name
    shutil.copytree(deployment.bundle, broken)
    (broken / "items.txt").write_text("item-0\n")
    deployment.bundle = broken
    assert "items.txt" in refusal(deployment)


def test_only_what_was_verified_is_served(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, other = deployment.bundle.name, "0" * 16
    assert refusal(deployment, expected_bundle_id=other).endswith(
        f"holds bundle {good}, but expected_bundle_id is {other}"
    )
    (deployment.bundle / "weights.bin").write_bytes(b"")
    assert "holds ['weights.bin'], which its manifest does not list" in refusal(deployment)
    (deployment.bundle / "weights.bin").unlink()

    # The worker runs where the external data lies.
    monkeypatch.setenv("PYTHONPATH", str(deployment.folder))
    deployment.folder = tmp_path
    bundle = load_bundle(deployment.bundle)
    spoilt = onnx.load_from_string(bundle.encode())
    weights = max(spoilt.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    array = numpy_helper.to_array(weights).copy()
    array[7] = np.nan
    weights.CopyFrom(numpy_helper.from_array(array, weights.name))
    external = onnx.load_from_string(bundle.encode())
    onnx.save(external, tmp_path / "graph", save_as_external_data=True, location="w")
    for graph, sentence in (
        ((tmp_path / "graph").read_bytes(), "encode.onnx cannot be opened"),
        (spoilt.SerializeToString(), "encode.onnx outputs NaN or infinity for item_index 7"),
    ):
        deployment.bundle = write_bundle(
            tmp_path / "bundles", bundle.manifest, bundle.item_ids, graph, bundle.rank()
        )
        assert sentence in refusal(deployment)

    current = tmp_path / "current"
    current.symlink_to(tmp_path / good)
    deployment.bundle = current
    deployment.start(expected_bundle_id=good)
    deployment.send([(b"s", click("s", "item-1", LOG_BEGIN_MS))])
    deployment.wait_until_answered(1)


def test_a_session_goes_on_behind_numbers_that_are_none(
    deployment: Deployment, tmp_path: Path
) -> None:
    bundle = load_bundle(deployment.bundle)
    graph = Graph()  # the state counts clicks; the logarithm of the fifth is NaN
    clicks = graph.add("Add", "state", np.array([1], np.float32))
    left = graph.add("Log", graph.add("Sub", np.array([4.5], np.float32), clicks))
    graph.add("Mul", left, np.array([0], np.float32), output="query")
    graph.add("Add", clicks, "query", output="state_out")
    state = TensorProto.FLOAT, "B", bundle.manifest.state_size
    encode = graph.model(
        [value_info("item_index", TensorProto.INT64, "B"), value_info("state", *state)],
        [value_info("query", *state), value_info("state_out", *state)],
    )
    deployment.bundle = write_bundle(
        tmp_path / "next",
        bundle.manifest,
        bundle.item_ids,
        encode.SerializeToString(),
        bundle.rank(),
    )
    worker = deployment.start(batch_clicks="3")
    deployment.send([(b"s", click("s", f"item-{n}", LOG_BEGIN_MS + n)) for n in range(12)])
    deployment.wait_until_answered(12)
    values = [json.loads(r.value or b"") for r in deployment.read(deployment.recommendations)]
    assert [value["outcome"] for value in values] == (["model"] * 4 + ["fallback"]) * 2 + [
        "model"
    ] * 2
    assert all(item["score"] is not None for value in values for item in value["items"])
    assert worker.metric("recs_lists_without_scores_total") == 2


def test_a_new_bundle_of_another_kind_rebuilds_the_sessions_from_their_trails(
    deployment: Deployment, tmp_path: Path
) -> None:
    answered_and_stopped(deployment)  # by a GRU without context
    deployment.bundle = write_tiny_bundle(
        tmp_path / "next",
        n_items=50,
        hidden_size=12,
        k=10,
        n_layers=2,
        seed=5,
        cell="lstm",
        context=(
            ContextField(name="event_type", kind="column", values=("view",)),
            ContextField(name="gap", kind="gap", edges_s=(0.002, 1.0)),
        ),
    )
    worker = deployment.start()
    deployment.send([(b"s", click("s", "item-9", LOG_BEGIN_MS + 9))])
    deployment.wait_until_answered(6)
    last = json.loads(deployment.read(deployment.recommendations)[-1].value or b"")
    assert (last["model"], last["outcome"]) == (deployment.bundle.name, "model")
    assert worker.metric("recs_rebuilt_sessions_total") == 1
    # A fault-free run of all six clicks under the new bundle ends in the same state.
    found = verdict(deployment)
    assert (found.wrong_states, found.missing, found.duplicates) == (0, 0, 0)
    assert found.state_error < 1e-5


def test_a_port_that_is_taken_stops_the_start(deployment: Deployment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        deployment.extra = {"web_port": str(port)}
        assert f"cannot listen on 127.0.0.1:{port} (web_host, web_port)" in refusal(deployment)
