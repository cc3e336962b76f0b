import fcntl
import html
import json
import os
from pathlib import Path

import matplotlib.image
import polars as pl
import pytest

from tests.unit.train.building import markov_clicks
from train.__main__ import main
from train.data.clicks import split_by_time
from train.network.checkpoint import load_checkpoint

QUICK = ["--epochs", "2", "--hidden-size", "8", "--n-negatives", "16", "--batch-size", "8"]


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    path = tmp_path / "clicks.parquet"
    markov_clicks(0.9, n_sessions=100, n_items=30, seed=1).write_parquet(path)
    return path


def fit(clicks: Path, out: Path, *flags: str) -> int:
    return main(["fit", "--clicks", str(clicks), "--out", str(out), *QUICK, *flags])


def test_fit_leaves_a_checkpoint_figures_and_a_plot(clicks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fit(clicks, out, "--idle-timeout-s", "1800", "--embedding", "shared") == 0
    info = load_checkpoint(out).info
    assert info.model.embedding == "shared"
    assert info.idle_timeout_s == 1800
    assert info.training.sessions == 90
    assert info.finished
    figures = json.loads((out / "figures.json").read_text())
    assert figures["protocol"] == info.protocol
    assert figures["validation"]["model"] == info.metrics
    assert set(figures["validation"]) == {"model", "pop", "s-pop", "markov"}
    assert len({row["predictions"] for row in figures["validation"].values()}) == 1
    assert [record["epoch"] for record in figures["history"]] == [1, 2]
    image = matplotlib.image.imread(out / "training.png")
    assert image.std() > 0.05, "more than an empty page"


def test_the_health_of_the_log_goes_from_fit_to_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out, kept = tmp_path / "log.parquet", tmp_path / "out", tmp_path / "kept"
    clicks = markov_clicks(0.9, n_sessions=100, n_items=30, seed=1)
    pl.concat([clicks, clicks[:60]]).write_parquet(path)
    assert fit(path, out) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (warning,) = (line for line in lines if line["event"] == "duplicates")
    assert (warning["level"], warning["found"][:4]) == ("warning", "9.1%")
    assert any(line["event"] == "log_examined" and line["records"] == 660 for line in lines)
    health = load_checkpoint(out).info.health
    assert health is not None
    assert (health.records, [f.name for f in health.findings]) == (660, ["duplicates"])
    assert main(["look", str(path)]) == 0
    assert f"! {health.findings[0]}"[:80] in capsys.readouterr().out
    words = ["--checkpoint", str(out), "--clicks", str(path), "--out", str(kept)]
    assert main(["evaluate", *words]) == 0
    assert main(["report", "--runs", str(kept), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "What model learnt from" in page
    assert f"<li>{html.escape(str(health.findings[0]), quote=False)}</li>" in page


def test_fit_validates_on_the_file_it_is_given(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, newer = tmp_path / "other.csv", tmp_path / "newer.csv"
    log = markov_clicks(0.9, n_sessions=20, n_items=30, seed=5)
    log.write_csv(other)
    log.with_columns(pl.col("timestamp_ms") + 10**9).write_csv(newer)
    assert fit(clicks, tmp_path / "other", "--validation", str(other)) == 0
    assert "not_newer_than_the_training" in capsys.readouterr().err
    assert fit(clicks, tmp_path / "out", "--validation", str(newer)) == 0
    assert "not_newer_than_the_training" not in capsys.readouterr().err
    info = load_checkpoint(tmp_path / "out").info
    assert info.training.sessions == 100
    assert info.metrics["predictions"] == 20 * 5


def test_evaluate_reads_event_types_from_another_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop, renamed = tmp_path / "shop.parquet", tmp_path / "renamed.parquet"
    assert main(["synthetic", "--out", str(shop), "--clicks", "2000", "--n-items", "300"]) == 0
    pl.read_parquet(shop).rename({"event_type": "kind"}).write_parquet(renamed)
    assert fit(shop, tmp_path / "out", "--event-types", "view") == 0
    words = ["evaluate", "--checkpoint", str(tmp_path / "out")]
    capsys.readouterr()
    assert main([*words, "--clicks", str(shop)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main([*words, "--clicks", str(renamed), "--columns", "event_type=kind"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main([*words, "--clicks", str(renamed)]) == 2
    assert "the log has no column 'event_type' of event types" in capsys.readouterr().err


def test_fit_on_everything_has_a_plot_and_no_validation_figures(
    clicks: Path, tmp_path: Path
) -> None:
    assert fit(clicks, tmp_path / "out", "--validation", "0") == 0
    assert json.loads((tmp_path / "out" / "figures.json").read_text())["validation"] == {
        "model": {}
    }
    assert (tmp_path / "out" / "training.png").exists()


def test_fit_keeps_the_context_fields_it_learnt(clicks: Path, tmp_path: Path) -> None:
    words = ["--context", "hour,gap", "--utc-offset-s", "3600", "--transition-context", "matrices"]
    assert fit(clicks, tmp_path / "out", *words) == 0
    hour, gap = load_checkpoint(tmp_path / "out").info.model.context
    assert (hour.kind, hour.utc_offset_s) == ("hour", 3600)
    assert gap.kind == "gap"


def test_fit_begins_from_a_checkpoint_whose_items_keep_their_index(
    clicks: Path, tmp_path: Path
) -> None:
    assert fit(clicks, tmp_path / "first") == 0
    newer = tmp_path / "newer.parquet"
    log = markov_clicks(0.9, n_sessions=60, n_items=35, seed=3)
    log.write_parquet(newer)
    assert fit(newer, tmp_path / "second", "--warm-start", str(tmp_path / "first")) == 0
    first, second = (load_checkpoint(tmp_path / name).catalogue for name in ("first", "second"))
    assert second.item_ids[: len(first)] == first.item_ids
    assert set(second.item_ids) > set(first.item_ids)


def test_a_warm_start_reads_the_context_of_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = tmp_path / "shop.parquet"
    assert main(["synthetic", "--out", str(shop), "--clicks", "2000", "--n-items", "300"]) == 0
    assert fit(shop, tmp_path / "first", "--context", "event_type,gap") == 0
    warm = ["--warm-start", str(tmp_path / "first")]
    assert fit(shop, tmp_path / "second", *warm) == 0
    first, second = (load_checkpoint(tmp_path / name).info for name in ("first", "second"))
    assert second.model.context == first.model.context
    # The same log read alike: were its event types left out, the sessions would differ.
    assert second.content_hash == first.content_hash
    capsys.readouterr()
    assert fit(shop, tmp_path / "third", "--context", "hour", *warm) == 2
    assert "context=hour, but the checkpoint has event_type,gap" in capsys.readouterr().err


def test_a_checkpoint_is_not_evaluated_without_the_columns_of_its_context(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop, bare = tmp_path / "shop.parquet", tmp_path / "bare.parquet"
    assert main(["synthetic", "--out", str(shop), "--clicks", "2000", "--n-items", "300"]) == 0
    assert fit(shop, tmp_path / "out", "--context", "event_type,hour") == 0
    pl.read_parquet(shop).drop("event_type").write_parquet(bare)
    words = ["evaluate", "--checkpoint", str(tmp_path / "out"), "--clicks"]
    assert main([*words, str(shop)]) == 0
    capsys.readouterr()
    assert main([*words, str(bare)]) == 2
    assert f"context=event_type: {bare} has no such column" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "then", "sentence"),
    [
        (["hour,gap"], ["gap"], "was trained with context=hour,gap, not gap"),
        (["hour"], [], "was trained with context=hour, not none"),
        (
            ["hour", "--utc-offset-s", "3600"],
            ["hour"],
            "was trained with utc_offset_s=3600, not 0",
        ),
    ],
)
def test_other_context_is_not_resumed_and_that_is_said_before_the_log_is_read(
    clicks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    first: list[str],
    then: list[str],
    sentence: str,
) -> None:
    assert fit(clicks, tmp_path / "out", "--context", *first) == 0
    capsys.readouterr()
    words = ["--context", *then] if then else []
    assert fit(tmp_path / "absent.parquet", tmp_path / "out", "--resume", *words) == 2
    assert sentence in capsys.readouterr().err


def test_a_warm_start_of_another_time_zone_is_refused(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(clicks, tmp_path / "first", "--context", "hour") == 0
    warm = ["--warm-start", str(tmp_path / "first"), "--utc-offset-s", "7200"]
    capsys.readouterr()
    assert fit(clicks, tmp_path / "second", *warm) == 2
    assert "utc_offset_s=7200, but the checkpoint's hour has 0" in capsys.readouterr().err


def test_a_validation_of_unknown_items_alone_is_refused(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = tmp_path / "newer.parquet"
    log = markov_clicks(0.9, n_sessions=20, n_items=30, seed=5)
    log.with_columns(pl.col("item_id") + "-new").write_parquet(newer)
    assert fit(clicks, tmp_path / "out", "--validation", str(newer)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"{newer}: no next click to predict among 120 validation clicks, 120 of"
    )


def test_other_types_of_event_do_not_hide_a_gap(tmp_path: Path) -> None:
    """A worker never sees them, and so it cuts where they are gone."""
    minutes = [0, 20, 40, 60]
    log = pl.DataFrame(
        {
            "session_id": [f"s{n}" for n in range(20) for _ in minutes],
            "item_id": [f"i{n % 3 + k}" for n in range(20) for k in range(4)],
            "timestamp_ms": [86_400_000 * n + 60_000 * at for n in range(20) for at in minutes],
            "event_type": ["view", "cart", "view", "view"] * 20,
        }
    )
    log.write_parquet(tmp_path / "log.parquet")
    flags = ["--idle-timeout-s", "1800", "--event-types", "view"]
    assert fit(tmp_path / "log.parquet", tmp_path / "out", *flags) == 0
    training = load_checkpoint(tmp_path / "out").info.training
    assert training.clicks == 2 * training.sessions


def test_figures_by_popularity_say_when_it_is_known_in_part(
    clicks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("train.network.checkpoint.POPULAR_ITEMS", 10)
    assert fit(clicks, tmp_path / "out") == 0
    capsys.readouterr()
    words = ["evaluate", "--checkpoint", str(tmp_path / "out"), "--clicks", str(clicks)]
    assert main(words) == 0
    assert "popularity_known_in_part" in capsys.readouterr().err
    assert main([*words, "--train-clicks", str(clicks)]) == 0
    assert "popularity_known_in_part" not in capsys.readouterr().err


def test_evaluate_warns_where_a_comparison_is_not_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = markov_clicks(0.9, n_sessions=100, n_items=30, seed=1)
    older, newer = split_by_time(log, 0.2)
    older.write_parquet(tmp_path / "older.parquet")
    newer.write_parquet(tmp_path / "newer.parquet")
    for fraction, warned in (("0", False), ("0.1", True)):
        out = tmp_path / fraction
        assert fit(tmp_path / "older.parquet", out, "--validation", fraction) == 0
        words = ["evaluate", "--checkpoint", str(out), "--train-clicks"]
        words += [str(tmp_path / "older.parquet"), "--clicks"]
        capsys.readouterr()
        assert main([*words, str(tmp_path / "newer.parquet")]) == 0
        error = capsys.readouterr().err
        assert ("baselines_learn_from_other_clicks" in error) == warned
        assert "not_newer_than_the_training" not in error
        assert main([*words, str(tmp_path / "older.parquet")]) == 0
        assert "not_newer_than_the_training" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["search", "report", "ensemble", "synthetic"])
def test_an_out_that_cannot_be_written_is_one_sentence(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out, below = tmp_path / "out", clicks / "below"
    assert fit(clicks, out) == 0
    evaluate = ["--checkpoint", str(out), "--clicks", str(clicks), "--out", str(out)]
    assert main(["evaluate", *evaluate]) == 0
    words = {
        "search": ["--clicks", "absent.parquet", "--study", str(below)],
        "report": ["--runs", str(out), "--out", str(below / "report.html")],
        "ensemble": ["--checkpoints", f"{out},{out}", "--out", str(below)],
        "synthetic": ["--out", str(below / "shop.csv"), "--clicks", "1000"],
    }
    capsys.readouterr()
    assert main([command, *words[command]]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(below) in error
    assert "Not a directory" in error


def test_an_out_that_is_a_file_is_refused_before_anything_is_trained(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(clicks, clicks / "out") == 2
    assert "cannot be created" in capsys.readouterr().err.splitlines()[-1]


def test_settings_that_do_not_go_together_are_one_sentence_alone(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(clicks, tmp_path / "out", "--cell", "window", "--n-layers", "2") == 2
    error = capsys.readouterr().err.strip()
    assert (
        error.startswith("n_layers=2 cannot be combined with cell=window") and "found" not in error
    )


def test_fit_never_trains_over_a_checkpoint_unasked(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert fit(clicks, out) == 0
    before = load_checkpoint(out).info
    assert fit(clicks, out) == 2
    assert f"{out} already has a checkpoint" in capsys.readouterr().err
    assert fit(clicks, out, "--resume") == 0
    assert load_checkpoint(out).info == before
    assert fit(clicks, out, "--resume", "--epochs", "3") == 0
    assert len(load_checkpoint(out).info.history) == 3


def test_two_runs_never_train_into_one_folder(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    other_run = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(other_run, fcntl.LOCK_EX)
        assert fit(clicks, out) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error == f"{out} is in use by another training run: choose another --out"
        assert list(out.iterdir()) == []
    finally:
        os.close(other_run)
    assert fit(clicks, out) == 0


def test_evaluate_prints_the_checkpoints_validation_figures_again(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = tmp_path / "newer.parquet"
    log = markov_clicks(0.9, n_sessions=20, n_items=30, seed=5)
    new_item = pl.DataFrame(
        {"session_id": ["x", "x"], "item_id": ["new", "i0"], "timestamp_ms": [1, 2]}
    )
    pl.concat([log, new_item.select(log.columns)], how="vertical_relaxed").write_parquet(newer)
    out = tmp_path / "out"
    assert fit(clicks, out, "--validation", str(newer)) == 0
    capsys.readouterr()
    words = ["--checkpoint", str(out), "--clicks", str(newer), "--train-clicks", str(clicks)]
    assert main(["evaluate", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    kept = json.loads((out / "figures.json").read_text())["validation"]
    for name, figures in kept.items():
        assert figures.items() <= result["figures"][name].items()
    assert result["figures"]["pop"]["coverage_at_20"] == pytest.approx(20 / 30)
    assert result["dropped_clicks"] >= 1
    assert result["dropped_sessions"] == 1
    assert result["sessions"] == 20


def test_baselines_of_a_log_without_a_known_item_are_refused(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(clicks, tmp_path / "out") == 0
    other = tmp_path / "other.csv"
    other.write_text("session_id,item_id,timestamp_ms\ns,new,1000\ns,newer,2000\n")
    words = ["--checkpoint", str(tmp_path / "out"), "--clicks", str(clicks)]
    assert main(["evaluate", *words, "--train-clicks", str(other)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"{other} has no session with at least two clicks")


def test_evaluate_never_replaces_another_checkpoint_or_log_unasked(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("first", "1"), ("second", "2")):
        assert fit(clicks, tmp_path / name, "--seed", seed) == 0

    def kept(name: str, *words: str) -> tuple[int, str]:
        capsys.readouterr()
        out = ["--out", str(tmp_path / "runs"), "--clicks", str(clicks)]
        code = main(["evaluate", "--checkpoint", str(tmp_path / name), *out, *words])
        return code, capsys.readouterr().err.strip()

    assert kept("first")[0] == 0
    assert kept("first")[0] == 0, "the same again is no loss"
    path = tmp_path / "runs" / "model.evaluation.npz"
    before = path.read_bytes()
    code, error = kept("second")
    assert (code, error.splitlines()[-1]) == (
        2,
        f"{path} belongs to a different checkpoint: choose another --out",
    )
    code, error = kept("first", "--name", "other")
    assert code == 2
    assert "was measured on a different log, clicks.parquet" in error
    same_times = tmp_path / "other" / "clicks.parquet"
    same_times.parent.mkdir()
    pl.read_parquet(clicks).with_columns(pl.col("item_id").reverse()).write_parquet(same_times)
    code, error = kept("first", "--clicks", str(same_times))
    assert code == 2
    assert "was measured on a different log, clicks.parquet" in error
    assert path.read_bytes() == before


def test_synthetic_writes_a_log_that_fit_reads_and_prints_its_oracle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = tmp_path / "shop.parquet"
    words = ["--out", str(shop), "--clicks", "3000", "--seed", "3", "--n-items", "300"]
    assert main(["synthetic", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["clicks"] == 3000
    assert 0.3 < result["oracle_recall_at_20"] < 1
    assert fit(shop, tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--dropout-hidden", "1"], "--dropout-hidden: Input should be less than 1 (found '1')"),
        (["--loss", "hinge"], "--loss: Input should be 'bpr-max', 'cross-entropy'"),
        (["--hiden-size", "9"], "--hiden-size"),
        (["--preset", "rsc"], "preset=rsc is neither a JSON file nor one of default, rsc15-100k"),
        (["--cell", "window", "--n-layers", "2"], "n_layers=2 cannot be combined with cell=window"),
        (["--context", "colour"], "context=colour: "),
        (["--context", "gap,gap"], "expected distinct names"),
        (["--context", "item_id"], "'item_id' cannot be a context column"),
        (["--event-types", "view"], "event_types=event_type: "),
        (["--clicks", "none.parquet", "--context", "colour"], "none.parquet does not exist"),
        (
            ["--context", "gap", "--embedding", "one-hot"],
            "transition_context=concat cannot be combined with embedding=one-hot",
        ),
        (
            ["--context", "gap", "--cell", "window", "--transition-context", "matrices"],
            "transition_context=matrices cannot be combined with cell=window",
        ),
        (["--batch-size", "1", "--n-negatives", "0"], "loss=cross-entropy needs negatives"),
        (["--seed", "99999999999"], "--seed: Input should be less than or equal to 4294967295"),
        (["--normalise", "inf"], "--normalise: Input should be a finite number (found 'inf')"),
        (
            ["--validation", "1"],
            "--validation: expected a share of at least 0 and below 1",
        ),
        (["--event-types", "cart=1e300"], "--event-types.cart: Input should be less than or equal"),
        (["--event-types", "view=0"], "--event-types: expected a weight above 0"),
        (["--columns", "colour=red"], "--columns: colour is unknown, expected preset, session"),
        (["--filters", "last_days=-1"], "--filters: last_days=-1: Input should be greater than 0"),
    ],
)
def test_a_wrong_setting_stops_in_one_sentence(
    clicks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    sentence: str,
) -> None:
    assert fit(clicks, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--context", "ItemId"], "context=ItemId: that column is the log's session, item or time"),
        (["--context", "gap,Time"], "context=Time: that column"),
        (
            ["--event-types", "view", "--columns", "public,event_type=SessionId"],
            "event_types=SessionId: that column",
        ),
        (["--context", "dwell"], "context=dwell: "),
    ],
)
def test_a_column_that_cannot_be_context_is_named_before_the_log_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    path = tmp_path / "clicks.parquet"
    log = markov_clicks(0.9, n_sessions=20, n_items=30, seed=1)
    names = {"session_id": "SessionId", "item_id": "ItemId", "timestamp_ms": "Time"}
    dwell = pl.duration(seconds=pl.col("timestamp_ms") % 60)
    log.with_columns(dwell=dwell).rename(names).write_parquet(path)
    assert fit(path, tmp_path / "out", "--columns", "public", *flags) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(sentence)
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fit", "--out", "x"], "--clicks"),
        (["fit", "--clicks", "none.csv", "--out", "x"], "none.csv"),
        (
            ["synthetic", "--out", "x.csv", "--clicks", "999"],
            "--clicks: Input should be greater than",
        ),
        (
            ["evaluate", "--checkpoint", "none", "--clicks", "none.csv"],
            "none contains no checkpoint",
        ),
        (
            ["evaluate", "--checkpoint", "x", "--clicks", "y.csv", "--baselines", "pop"],
            "baselines=pop requires train_clicks",
        ),
        (
            [
                "collect",
                "--out",
                "x",
                "--since",
                "2026-01-02T00:00Z",
                "--until",
                "2026-01-01T00:00Z",
            ],
            "since=2026-01-02 00:00:00+00:00 is not before until=2026-01-01 00:00:00+00:00",
        ),
        (
            ["collect", "--out", "x", "--from-offsets", "0=9", "--to-offsets", "0=8"],
            "from_offsets=0=9 is after to_offsets=0=8",
        ),
        (["retrain"], "retrain"),
        ([], "fit"),
    ],
    ids=str,
)
def test_a_command_that_cannot_run_says_why(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1
