"""A replay that is judged: the pure parts of ``python -m bench.live``."""

from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.live.__main__ import LiveSettings, read_logs, summary
from bench.live.clicks import answered_before, as_stream, read_log
from bench.live.judge import Answer, Judge, Listed, decode_answer
from bench.live.variants import ROWS, exported, live_of, write_variant
from stream.model.bundle import Live, load_bundle, write_bundle
from tests.unit.export.test_main import write_checkpoint
from train.command import TrainError, parse
from train.network.checkpoint import load_checkpoint

LIVE = Live(2700, 180, True, 25, 0.5, [[0.1] * 9 + [0.25]] * 5)


def clicks(*rows: tuple[str, str, int]) -> pl.DataFrame:
    names = ["session_id", "item_id", "timestamp_ms"]
    schema = dict(zip(names, (pl.String, pl.String, pl.Int64), strict=True))
    return pl.DataFrame(rows, schema, orient="row")


HISTORY = clicks(("h", "a", 10), ("both", "a", 20), ("h", "b", 31))
LOG = clicks(("s", "a", 30), ("both", "c", 40), ("s", "b", 50), ("both", "a", 60), ("one", "a", 70))


def test_two_logs_become_one_stream_in_order_of_time() -> None:
    stream = as_stream(HISTORY, LOG)
    assert stream.session_id == ["h", "both", "s", "h", "both", "s", "both", "one"]
    assert stream.timestamp_ms.tolist() == [10, 20, 30, 31, 40, 50, 60, 70]
    assert stream.prefix.tolist() == [1, 1, 1, 2, 2, 2, 3, 1]
    assert stream.begin == 2


def test_only_next_clicks_within_the_log_are_asked_for() -> None:
    stream = as_stream(HISTORY, LOG)
    assert stream.next_click.tolist() == [-1, -1, 5, -1, 6, -1, -1, -1]
    assert (stream.next_click >= 0).sum() == len(LOG) - LOG["session_id"].n_unique()
    with pytest.raises(TrainError, match="no session with a next click"):
        as_stream(HISTORY, LOG.tail(1))


def test_a_public_log_is_read_in_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_text(
        "SessionId\tItemId\tTime\n1\ta\t1500000020.5\n1\tb\t1500000040\n2\tc\t1500000030\n"
    )
    found = read_log(path)
    assert found["item_id"].to_list() == ["a", "c", "b"]
    assert found["timestamp_ms"].to_list() == [1500000020500, 1500000030000, 1500000040000]


def test_logs_are_cut_for_a_try_and_must_follow_each_other(tmp_path: Path) -> None:
    paths = tmp_path / "history.tsv", tmp_path / "log.tsv"
    for path, begin in zip(paths, (1_500_000_000, 1_500_000_100), strict=True):
        rows = (f"{n % 3}\ti{begin + n}\t{begin + n}\n" for n in range(9))
        path.write_text("".join(["SessionId\tItemId\tTime\n", *rows]))
    history, log = paths
    flags = ["--newest", "2", "--first", "4"]
    clicks, before = read_logs(parse(LiveSettings, [str(log), *flags]), history)
    assert (before["timestamp_ms"] // 1000).to_list() == [1_500_000_007, 1_500_000_008]
    assert (clicks["timestamp_ms"] // 1000).to_list() == [1_500_000_100 + n for n in range(4)]
    assert [len(of) for of in read_logs(parse(LiveSettings, [str(log)]), history)] == [9, 9]
    with pytest.raises(TrainError, match=r"history.tsv begins before .*log.tsv: expected a log"):
        read_logs(parse(LiveSettings, [str(history)]), log)


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=40).map(sorted),
    st.integers(0, 20),
    st.integers(1, 10),
)
def test_clicks_under_way_lie_within_the_window_and_no_click_waits_in_vain(
    times: list[int], window_ms: int, most_open: int
) -> None:
    needed = answered_before(np.array(times), window_ms, most_open).tolist()
    for n, (at_ms, first) in enumerate(zip(times, needed, strict=True)):
        under_way = times[max(0, first) : n + 1]
        assert under_way, "a click that would wait for its own answer"
        assert len(under_way) <= most_open and at_ms - under_way[0] <= window_ms
        one_more = times[first - 1 : n + 1] if first > 0 else []
        assert not one_more or len(one_more) > most_open or at_ms - one_more[0] > window_ms


def answer(*items: tuple[str, float], outcome: str = "model", view_ms: int | None = None) -> Answer:
    return Answer([Listed(name, score, f"of {name}") for name, score in items], outcome, view_ms)


STREAM = as_stream(clicks(), LOG)
"""Its clicks 0 and 1 are followed by b and a."""


def test_a_list_is_judged_by_the_sessions_next_click_and_ties_count_against_it() -> None:
    judge = Judge(STREAM, known={"a"})
    judge.add(0, answer(("c", 2.0), ("b", 1.0), ("a", 1.0)))
    judge.add(1, answer(("a", 2.0), ("b", 1.0), outcome="live"))
    judge.add(2, answer(("a", 2.0)))  # nobody asks
    found = judge.figures()
    assert found["predictions"] == 2
    assert (found["recall_at_20"], found["mrr_at_20"]) == (1.0, round((1 / 3 + 1) / 2, 4))
    assert found["by_outcome"]["live"]["mrr_at_20"] == 1.0
    assert found["by_outcome"]["model"]["mrr_at_20"] == 0.3333
    assert found["by_target"]["known"] == {"predictions": 1, "recall_at_20": 1.0, "mrr_at_20": 1.0}
    assert found["by_target"]["unknown"]["mrr_at_20"] == 0.3333
    assert found["hits_by_source"] == {"of b": 1, "of a": 1}


def test_an_item_behind_the_twentieth_place_or_in_no_list_is_a_miss() -> None:
    judge = Judge(STREAM, known=())
    judge.add(0, answer(*((f"x{n}", -n) for n in range(20)), ("b", -20.0)))
    found = judge.figures()
    assert (found["predictions"], found["recall_at_20"], found["mrr_at_20"]) == (2, 0.0, 0.0)
    assert found["hits_by_source"] == {}


def test_prefixes_of_five_and_more_are_told_together() -> None:
    stream = as_stream(clicks(), clicks(*(("s", f"i{n}", n) for n in range(8))))
    judge = Judge(stream, known=())
    judge.add(6, answer(("i7", 1.0)))
    found = judge.figures()["by_prefix"]
    assert {name: of["predictions"] for name, of in found.items()} == dict.fromkeys("1234", 1) | {
        "5+": 3
    }
    assert found["5+"]["recall_at_20"] == 0.3333


def test_a_view_is_behind_the_click_that_it_answers_or_ahead() -> None:
    judge = Judge(STREAM, known=())
    assert judge.view() is None
    judge.add(0, answer(("b", 1.0), view_ms=30 + 2000))
    judge.add(1, answer(("a", 1.0), view_ms=40 - 4000))
    found = judge.view()
    assert found is not None
    assert found["lists"] == 2
    assert found["lag_s"]["max"] == 4.0 and found["lag_s"]["p50"] == 2.0
    assert found["lead_s"]["max"] == 2.0
    assert found["clicks_behind"]["max"] == 1.0, "click 0, which came before click 1"


def test_answers_of_workers_with_and_without_a_view_can_be_read() -> None:
    old = decode_answer(b'{"items": [{"item_id": "a", "score": 1}], "outcome": "model", "x": 0}')
    assert (old.items, old.view_ms) == ([Listed("a", 1.0)], None)
    item = b'{"item_id": "a", "score": 1, "source": "last"}'
    new = decode_answer(b'{"items": [%b], "outcome": "live", "view_ms": 7}' % item)
    assert new == Answer([Listed("a", 1.0, "last")], "live", 7)


def test_a_row_takes_parts_out_of_what_the_manifest_says() -> None:
    made = {row: live_of(row, LIVE) for row in ROWS}
    assert made["static"] is None and made["live"] == LIVE
    bias, counts = made["bias"], made["counts"]
    assert bias is not None and counts is not None
    assert bias.weights == [[0.0] * 9 + [1.0]] * 5
    assert counts.weights == [[0.1] * 9 + [0.0]] * 5
    assert msgspec.structs.replace(bias, weights=LIVE.weights) == LIVE


def test_the_static_row_is_the_network_without_what_the_stream_teaches(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_checkpoint(tmp_path))
    plain = exported(checkpoint, tmp_path / "bundles")
    assert plain.manifest.live is None and plain.manifest.idle_timeout_s
    static = write_variant("static", plain, checkpoint, tmp_path / "bundles")
    assert static.manifest.idle_timeout_s is None and static.encode() == plain.encode()
    with pytest.raises(TrainError, match="row bias needs: train it again, or choose --rows static"):
        write_variant("bias", plain, checkpoint, tmp_path / "bundles")

    manifest = msgspec.structs.replace(plain.manifest, live=LIVE)
    other = plain.encode(), b"the graph of candidates"
    live = load_bundle(write_bundle(tmp_path / "live", manifest, plain.item_ids, *other))
    bias = write_variant("bias", live, checkpoint, tmp_path / "live")
    assert bias.rank() == other[1]
    again = write_variant("static", live, checkpoint, tmp_path / "live")
    assert again.rank() == plain.rank()


def run(name: str, recall: float, **more: object) -> dict[str, object]:
    figures = {"recall_at_20": recall, "mrr_at_20": recall / 2, "predictions": 9}
    parts = ("by_prefix", "by_target", "by_outcome", "hits_by_source", "view", "offsets")
    rest = dict.fromkeys((*parts, "checkpoint", "bundle_id", "wall_s", "cpu_s_of_log"))
    return {"name": name, **rest, **figures, **more}


def test_a_row_is_the_mean_of_its_runs_which_stand_beside_it() -> None:
    found = summary([run("static", 0.2, bundle_id="x"), run("counts", 0.6), run("static", 0.3)])
    static, counts = found["rows"]
    assert (static["name"], static["recall_at_20"]) == ("static", 0.25)
    assert static["mrr_at_20_by_run"] == [0.1, 0.15]
    assert counts["recall_at_20_by_run"] == [0.6]
    assert found["bundle_ids"] == {"static": ["x", None], "counts": [None]}
    assert found["predictions"] == 9


def test_rows_are_named_as_they_are() -> None:
    assert parse(LiveSettings, ["log.tsv", "--rows", "static,live"]).rows == ("static", "live")
    with pytest.raises(TrainError, match="--rows"):
        parse(LiveSettings, ["log.tsv", "--rows", "none"])
