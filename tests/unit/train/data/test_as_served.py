"""A collected log with late clicks: the sessions to learn from are those that the stream served."""

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream.batch import Planner, Rules
from stream.contract.records import Record
from stream.model.models import Model, Models
from stream.model.scorer import Waves
from stream.position import BadClickLimit, Position
from tests.unit.stream.replay import FakeScorer, bundle_of
from train.command import TrainError
from train.data.clicks import cut_sessions, read_clicks, split_by_time, write_clicks
from train.data.context import ContextField
from train.data.parts import Begin, Parts, load_state
from train.data.sessions import build_sessions

BEGIN_MS = 1_700_000_000_000
IDLE_S = 1800
FIELDS = (
    ContextField(name="gap", kind="gap", edges_s=(0.0, 1.0, 60.0, 1800.0)),
    ContextField(name="hour", kind="hour"),
)
LATENESS_S = 600
RULES = Rules(IDLE_S * 1000, LATENESS_S * 1000, BadClickLimit(1000, 0.5))

steps_s = st.sampled_from([0, 1, 30, 300, -1, -30, -4000, 1799, 1800, 1801, 4000])
clicks_of_sessions = st.lists(st.tuples(st.sampled_from("stu"), steps_s), min_size=4, max_size=30)

Served = list[list[tuple[str, list[int]]]]
"""Of every session with two clicks its items, each with its numbers in the context fields."""


def records_of(clicks: Sequence[tuple[str, int]]) -> list[Record]:
    """A record a click, in order of offset; each with an item of its own, some seconds later."""
    times = accumulate((step for _, step in clicks), initial=BEGIN_MS // 1000)
    return [
        Record(0, n, 2 * BEGIN_MS, session.encode(), json.dumps(click).encode())
        for n, ((session, _), at) in enumerate(zip(clicks, list(times)[1:], strict=True))
        for click in [{"session_id": session, "item_id": f"i{n}", "timestamp_ms": 1000 * at}]
    ]


def streams_sessions(records: Sequence[Record]) -> Served:
    items = [f"i{n}" for n in range(len(records))]
    bundle = bundle_of(items, n_recommendations=1, context=FIELDS)
    sessions = defaultdict(list)
    step = Waves.step

    def noted(self: Waves, row: int, item: int, numbers: list[int], *, ranked: bool) -> int:
        sessions[row].append((items[item], numbers))
        return step(self, row, item, numbers, ranked=ranked)

    with patch.object(Waves, "step", noted):
        model = Model(bundle, FakeScorer(np.eye(len(items)), 1))
        Planner(Models(model), RULES, "clicks").plan(
            {0: records},
            {0: Position(0, "topic id")},
            lambda *_: None,
        )
    return sorted(session for session in sessions.values() if len(session) > 1)


def collected(records: Sequence[Record], out: Path) -> None:
    out.mkdir(exist_ok=True)
    parts = Parts(out, load_state(out, Begin(cluster=None, topic="t", since=None, from_offsets={})))
    for record in records:
        parts.take(record)
        if record.offset % 7 == 6:
            parts.commit()
    parts.commit()


def learnt_sessions(clicks: pl.DataFrame) -> Served:
    sessions, catalogue, *_ = build_sessions(clicks, context=FIELDS)
    found = []
    for begin, end in zip(sessions.start[:-1], sessions.start[1:], strict=True):
        items = [catalogue.item_ids[item] for item in sessions.item_index[begin:end]]
        found.append(list(zip(items, sessions.context[begin:end].tolist(), strict=True)))
    return sorted(found)


@given(clicks_of_sessions)
@example([("s", 0), ("s", 5), ("s", -3), ("s", 6)])
@example([("s", 0), ("s", 1), ("t", 4000), ("s", -3990), ("s", 1), ("s", -2), ("s", 9)])
@example([("s", 3599), ("s", 2), ("s", -2), ("s", 1800), ("s", 1802)])
@settings(deadline=None)
def test_a_collected_log_is_learnt_as_the_stream_served_it(clicks: list[tuple[str, int]]) -> None:
    records = records_of(clicks)
    with TemporaryDirectory() as folder:
        collected(records, Path(folder))
        log = read_clicks(
            folder, idle_timeout_s=IDLE_S, allowed_lateness_s=LATENESS_S, keep=()
        ).clicks
    assert learnt_sessions(log) == streams_sessions(records)
    assert not {"kafka_partition", "kafka_offset"} & {*log.columns}


def test_a_session_ends_where_the_watermark_has_left_it_behind(tmp_path: Path) -> None:
    clicks = [("s", 0), ("t", 2401), ("s", -2391), ("s", 5)]
    collected(records_of(clicks), tmp_path)

    def sessions(idle_timeout_s: int | None = None, allowed_lateness_s: int = 600) -> list[str]:
        log = read_clicks(
            tmp_path, idle_timeout_s=idle_timeout_s, allowed_lateness_s=allowed_lateness_s
        )
        return log.clicks.sort("kafka_offset")["session_id"].to_list()

    assert sessions() == ["s", "t", "s", "s"]
    assert sessions(idle_timeout_s=IDLE_S) == ["s", "t", "s+2", "s+2"]
    assert sessions(idle_timeout_s=IDLE_S, allowed_lateness_s=601) == ["s", "t", "s", "s"]
    collected(records_of([*clicks, ("s+2", 0)]), tmp_path / "taken")
    with pytest.raises(TrainError, match=r"ids such as session\+2"):
        read_clicks(tmp_path / "taken", idle_timeout_s=IDLE_S)


@given(clicks_of_sessions)
@settings(deadline=None, max_examples=30)
def test_a_collected_log_that_was_written_again_is_the_same(clicks: list[tuple[str, int]]) -> None:
    """With the clicks' own times, of both sides of a split."""
    records = records_of([("s", 0), ("t", 0), *clicks])
    with TemporaryDirectory() as folder:
        collected(records, Path(folder))
        split = split_by_time(read_clicks(folder).clicks, 0.5)
        for side in split:
            path = Path(folder) / "again" / "side.parquet"
            write_clicks(side, path)
            written = pl.read_parquet(path)
            said = [json.loads(records[n].value or b"") for n in written["kafka_offset"]]
            assert written["timestamp_ms"].to_list() == [click["timestamp_ms"] for click in said]
            again = cut_sessions(read_clicks(path).clicks, IDLE_S)
            assert learnt_sessions(again) == learnt_sessions(cut_sessions(side, IDLE_S))


def test_a_log_whose_rows_left_the_order_of_the_offsets_is_in_order_of_time(tmp_path: Path) -> None:
    collected(records_of([("s", 0), ("s", 5), ("s", -3), ("s", 6)]), tmp_path)
    rows = pl.read_parquet(tmp_path / "*.parquet")
    assert read_clicks(tmp_path).clicks["item_id"].to_list() == ["i0", "i1", "i2", "i3"]
    rows[[2, 0, 3, 1]].write_parquet(tmp_path / "shuffled.parquet")
    clicks = read_clicks(tmp_path / "shuffled.parquet").clicks
    assert clicks["item_id"].to_list() == ["i0", "i2", "i1", "i3"]
