"""A blend from the command line: fitted, written, measured again."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.unit.train.building import markov_clicks
from train.__main__ import main
from train.blend.blend import BlendWeights
from train.data.clicks import split_by_time

NEIGHBOURS = "vmis-knn:m=50:k=20"
FIT = ["--epochs", "2", "--hidden-size", "8", "--n-negatives", "16", "--batch-size", "8"]


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    path = tmp_path / "clicks.parquet"
    markov_clicks(0.9, n_sessions=200, n_items=30, seed=1).write_parquet(path)
    return path


def blend(
    capsys: pytest.CaptureFixture[str], clicks: Path, out: Path, *flags: str
) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["blend", "--clicks", str(clicks), "--out", str(out), *flags]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_a_blend_of_a_checkpoint_and_a_baseline_is_measured_again_by_evaluate(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "blends" / "blend.json"
    assert main(["fit", "--clicks", str(clicks), "--out", str(checkpoint), *FIT]) == 0
    parts = ["--checkpoints", str(checkpoint), "--baselines", f"{NEIGHBOURS},markov"]
    result = blend(capsys, clicks, out, *parts)
    weights = BlendWeights.model_validate_json(out.read_text())
    assert weights.parts == ("model", NEIGHBOURS, "markov")
    found = result["figures"]
    assert set(found) == {*weights.parts, "blend"}
    kept = json.loads((checkpoint / "figures.json").read_text())["validation"]
    assert kept["model"].items() >= found["model"].items(), "the sessions that fit held back"
    assert found["blend"]["mrr_at_20"] > found["model"]["mrr_at_20"]

    older, newer = split_by_time(pl.read_parquet(clicks), 0.1)
    older.write_parquet(tmp_path / "older.parquet")
    newer.write_parquet(tmp_path / "newer.parquet")
    words = ["--checkpoint", str(checkpoint), "--clicks", str(tmp_path / "newer.parquet")]
    words += ["--train-clicks", str(tmp_path / "older.parquet"), "--blend", str(out)]
    assert main(["evaluate", *words, "--baselines", "pop"]) == 0
    again = json.loads(capsys.readouterr().out)["figures"]
    assert set(again) == {"model", "pop", NEIGHBOURS, "markov", "blend"}
    assert found["markov"].items() <= again["markov"].items()
    assert again["blend"]["mrr_at_20"] >= again["model"]["mrr_at_20"], "fitted on these very clicks"


def test_baselines_alone_make_a_blend_on_a_log_of_their_own(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = tmp_path / "newer.csv"
    log = markov_clicks(0.9, n_sessions=40, n_items=30, seed=5)
    log.with_columns(pl.col("timestamp_ms") + 10**9).write_csv(newer)
    flags = ["--validation", str(newer), "--baselines", "markov,s-pop", "--idle-timeout-s", "1800"]
    result = blend(capsys, clicks, tmp_path / "blend.json", *flags)
    assert result["sessions"] == 40
    flags = ["--validation", "0.25", "--baselines", "markov,s-pop"]
    assert blend(capsys, clicks, tmp_path / "share.json", *flags)["sessions"] == 50
    assert set(result["figures"]) == {"markov", "s-pop", "blend"}
    assert len({found["predictions"] for found in result["figures"].values()}) == 1


def test_checkpoints_of_one_log_blend_and_of_two_do_not(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.parquet"
    markov_clicks(0.9, n_sessions=200, n_items=25, seed=2).write_parquet(other)
    for name, log, seed in (("a", clicks, "1"), ("b", clicks, "2"), ("c", other, "1")):
        words = ["fit", "--clicks", str(log), "--out", str(tmp_path / name), "--seed", seed]
        assert main([*words, *FIT]) == 0
    a, b, c = (str(tmp_path / name) for name in "abc")
    out = tmp_path / "blend.json"
    result = blend(capsys, clicks, out, "--checkpoints", f"{a},{b}")
    assert set(result["figures"]) == {"model", "model-2", "blend"}
    words = ["blend", "--clicks", str(clicks), "--checkpoints", f"{a},{c}"]
    assert main([*words, "--out", str(tmp_path / "two.json")]) == 2
    assert f"{c} and {a} have different items" in capsys.readouterr().err
    words = ["evaluate", "--checkpoint", a, "--clicks", str(clicks), "--train-clicks", str(clicks)]
    assert main([*words, "--blend", str(out)]) == 2
    missing = "the given models (model, pop, s-pop, markov) do not include model-2"
    assert f"blends model, model-2, but {missing}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--baselines", "markov"], "a blend needs at least 2 different models"),
        (["--baselines", "markov,markov"], "a blend needs at least 2 different models"),
        (["--baselines", "markov,vmis"], "--baselines.1: 'vmis' is not a baseline"),
        (["--baselines", "markov,vmis-knn:k=600"], "vmis-knn:k=600: VMIS-kNN requires"),
        (["--checkpoints", "none,none"], "none contains no checkpoint"),
        (
            ["--checkpoints", "a,b", "--idle-timeout-s", "9"],
            "idle_timeout_s=9 cannot be combined with checkpoints",
        ),
        (["--baselines", "pop,s-pop", "--out", "."], "out=. already exists: choose another file"),
        (["--baselines", "pop,s-pop", "--columns", "colour=red"], "--columns: colour is unknown"),
        (["--baselines", "pop,s-pop", "--validation", "no.csv"], "no.csv does not exist"),
        (["--baselines", "pop,s-pop", "--validation", "0"], "validation=0 leaves nothing to fit"),
        (["--baselines", "pop,s-pop", "--validation", "1"], "--validation: expected a share of at"),
    ],
)
def test_what_cannot_be_blended_is_one_sentence(
    clicks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    sentence: str,
) -> None:
    out = tmp_path / "blend.json"
    assert main(["blend", "--clicks", str(clicks), "--out", str(out), *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


def test_a_blend_needs_the_log_its_baselines_learn_from(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--checkpoint", "x", "--clicks", "y.csv", "--blend", "blend.json"]
    assert main(words) == 2
    assert "blend=blend.json requires train_clicks" in capsys.readouterr().err
