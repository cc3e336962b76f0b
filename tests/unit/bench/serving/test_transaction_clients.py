"""The clients of transactions: what a recorded batch holds, and how rows are summed up."""

from pathlib import Path

from bench.serving.bundles import write_tiny_bundle
from bench.serving.clients import NOT_COUNTED, STREAMS, Stream, record_batches, summary
from stream.position import POSITION_KEY, decode_position
from stream.settings import KafkaSettings


def test_a_recorded_batch_holds_an_answer_and_a_state_for_each_click(tmp_path: Path) -> None:
    wiring = KafkaSettings().wiring
    stream = Stream(clicks=16, partitions=4, batches=2)
    batches = record_batches(write_tiny_bundle(tmp_path, n_items=43_000), wiring, stream)
    assert len(batches) == 2 + NOT_COUNTED
    offsets = dict.fromkeys(range(4), 0)
    for batch in batches:
        answers = [m for (t, _), of in batch.records.items() for m in of if t == "recommendations"]
        states = {
            m.key for (t, _), of in batch.records.items() for m in of if t == wiring.changelog
        }
        assert len(answers) == 16
        assert {m.key for m in answers} == states - {POSITION_KEY}
        offsets |= batch.offsets
        for partition, offset in batch.offsets.items():
            position = decode_position(batch.records[wiring.changelog, partition][-1].value or b"")
            assert position.next_offset == offset
    assert sum(offsets.values()) == 16 * len(batches)


def test_figures_are_medians_over_all_rounds_and_say_who_is_fenced() -> None:
    rows = [
        {"stream": STREAMS[0].name, "client": client, "round": n, "ms": ms}
        | {"client_cpu_ms": cpu, "broker_cpu_ms": 2 * cpu}
        for client in ("ours, 2 ids", "aiokafka, 2 ids")
        for n, ms, cpu in ((1, [1.0, 2.0], 1.0), (2, [3.0], 3.0), (3, [9.0, 9.0], 2.0))
    ]
    (found,) = summary(rows).values()
    ours, theirs = found["ours, 2 ids"], found["aiokafka, 2 ids"]
    assert (ours["ms_median"], ours["client_cpu_ms"], ours["broker_cpu_ms"]) == (3.0, 2.0, 4.0)
    assert ours["fenced_by_generation"] and not theirs["fenced_by_generation"]
