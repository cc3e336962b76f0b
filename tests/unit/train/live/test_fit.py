"""What is fitted on planted structure."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.unit.train.building import markov_clicks
from train.__main__ import main
from train.live.fit import (
    POPULARITY_HALF_LIVES_MS,
    TIME_SCALES_MS,
    Fitted,
    figures,
    fit_live,
    worth,
)
from train.live.replay import ASKED, Replay, network_for, newest_clicks, one_after_the_other
from train.network.checkpoint import load_checkpoint

HOUR_MS = 3_600_000


def habits(change_every_ms: int | None) -> pl.DataFrame:
    """Two weeks of pairs of clicks, a pair a session; six in ten follow a habit, which changes
    that often."""
    rng = np.random.default_rng(1)
    first = rng.integers(0, 40, 2_000)
    at_ms = 1_500_000_000_000 + np.arange(2_000) * (14 * 24 * HOUR_MS // 2_000)
    habit = np.zeros_like(at_ms) if change_every_ms is None else at_ms // change_every_ms
    follows = np.array([np.random.default_rng(n).permutation(40) for n in habit])
    habitual = follows[np.arange(2_000), first]
    second = 100 + np.where(rng.random(2_000) < 0.6, habitual, rng.integers(0, 40, 2_000))
    clicks = pl.DataFrame(
        {
            "session_id": np.tile(np.arange(2_000), 2),
            "item_id": np.concatenate([first, second]),
            "timestamp_ms": np.concatenate([at_ms, at_ms + 1_000]),
        }
    )
    return clicks.with_columns(pl.col("session_id", "item_id").cast(pl.String))


def split(clicks: pl.DataFrame) -> pl.DataFrame:
    is_newest = pl.col("session_id").cast(pl.Int64) >= 1_800
    return one_after_the_other(clicks.filter(~is_newest), clicks.filter(is_newest))


def test_the_time_scale_is_that_of_the_habits() -> None:
    steady, hasty = fit_live(split(habits(None)), None), fit_live(split(habits(24 * HOUR_MS)), None)
    assert steady.rules.time_scale_ms >= 16 * 24 * HOUR_MS
    assert hasty.rules.time_scale_ms <= 6 * HOUR_MS
    assert steady.rules.excludes_seen
    assert steady.live is steady.counts
    # One click is known of each session: nearly all goes to what has followed it.
    assert steady.counts.weights[0, :2].sum() > 0.6


def test_items_of_the_session_are_listed_where_they_are_clicked_again() -> None:
    again = habits(None).with_columns(pl.col("timestamp_ms") + 2_000)
    fitted = fit_live(split(pl.concat([habits(None), again])), None)
    assert not fitted.rules.excludes_seen


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A log and the checkpoint that fit made of it."""
    folder = tmp_path_factory.mktemp("fit")
    markov_clicks(0.8, 300, 30, 1).write_csv(folder / "log.csv")
    words = ["fit", "--clicks", str(folder / "log.csv"), "--out", str(folder / "network")]
    assert main([*words, "--epochs", "2", "--hidden-size", "16"]) == 0
    return folder / "log.csv", folder / "network"


def fashions(change_every_ms: int | None) -> pl.DataFrame:
    """Two weeks of pairs of clicks; which of thirty items are popular changes that often."""
    rng = np.random.default_rng(1)
    at_ms = 1_500_000_000_000 + np.arange(2_000) * (14 * 24 * HOUR_MS // 2_000)
    fashion = np.zeros_like(at_ms) if change_every_ms is None else at_ms // change_every_ms
    in_fashion = np.array([np.random.default_rng(n).permutation(30) for n in fashion])
    place = rng.choice(30, 4_000, p=0.93 ** np.arange(30) / (0.93 ** np.arange(30)).sum())
    items = in_fashion[np.tile(np.arange(2_000), 2), place]
    clicks = pl.DataFrame(
        {
            "session_id": np.tile(np.arange(2_000), 2),
            "item_id": items,
            "timestamp_ms": np.concatenate([at_ms, at_ms + 1_000]),
        }
    )
    return clicks.with_columns(pl.col("session_id", "item_id").cast(pl.String))


def test_the_half_life_of_popularity_is_that_of_the_fashions(trained: tuple[Path, Path]) -> None:
    checkpoint = load_checkpoint(trained[1])
    found = []
    for change_every_ms in (None, 12 * HOUR_MS):
        clicks = split(fashions(change_every_ms))
        fitted = fit_live(clicks, network_for(checkpoint, clicks))
        assert fitted.live.bias > 0
        assert worth_of(fitted, f"bias-{fitted.live.bias:g}") > worth_of(fitted, "static")
        found.append(fitted.rules.popularity_half_life_ms)
    assert found[0] >= 24 * HOUR_MS
    assert found[1] <= 3 * HOUR_MS


def worth_of(fitted: Fitted, name: str) -> float:
    return sum(fitted.figures[name].values())


def test_without_a_bias_popularity_changes_with_the_log(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clicks = split(fashions(12 * HOUR_MS))
    counts = fit_live(clicks, None)
    beside = dict(zip(TIME_SCALES_MS, POPULARITY_HALF_LIVES_MS, strict=False))
    assert counts.rules.popularity_half_life_ms == beside[counts.rules.time_scale_ms]
    monkeypatch.setattr("train.live.fit.BIASES", (0.0,))
    fitted = fit_live(clicks, network_for(load_checkpoint(trained[1]), clicks))
    assert fitted.live.bias == 0
    assert fitted.rules == counts.rules


def test_the_blend_lists_no_worse_than_its_parts(trained: tuple[Path, Path]) -> None:
    log = pl.read_csv(trained[0], schema_overrides={"session_id": pl.String, "item_id": pl.String})
    clicks = one_after_the_other(log[:1_620], log[1_620:])
    network = network_for(load_checkpoint(trained[1]), clicks)
    fitted = fit_live(clicks, network)
    replay = Replay(fitted.rules, network, [fitted.live.bias])
    asked = [*replay.questions(clicks)]
    live = worth([question.rank(fitted.live) for question in asked])
    assert live >= worth([question.rank(fitted.counts) for question in asked])
    assert live >= worth([question.own_rank(fitted.live.bias) for question in asked])
    assert worth([q.own_rank(fitted.live.bias) for q in asked]) >= worth(
        [q.static_rank for q in asked]
    )
    assert fitted.figures["live"] == figures([question.rank(fitted.live) for question in asked])


def test_fit_keeps_what_prequential_fits_on_the_same_log(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, network = map(str, trained)
    live = load_checkpoint(trained[1]).info.live
    assert live is not None
    newer = tmp_path / "newer.csv"
    clicks = pl.read_csv(log)
    span_ms = clicks["timestamp_ms"].max() - clicks["timestamp_ms"].min() + 1  # type: ignore[operator]
    clicks.with_columns(pl.col("timestamp_ms") + span_ms).write_csv(newer)
    words = ["--history", log, "--clicks", str(newer), "--checkpoint", network]
    assert main(["prequential", *words]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert live.weights == printed["weights"]["live"]
    names = ("time_scale_s", "popularity_half_life_s", "excludes_seen", "bias", "sharpness")
    assert [getattr(live, name) for name in names] == [printed[name] for name in names]
    words = ["fit", "--clicks", log, "--out", network, "--epochs", "2", "--hidden-size", "16"]
    assert main([*words, "--resume"]) == 0  # nothing is left to do
    assert load_checkpoint(trained[1]).info.live == live


@pytest.mark.parametrize("validation", ["0", "0.05"])
def test_without_enough_to_fit_them_on_there_are_no_live_settings(
    trained: tuple[Path, Path], validation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--clicks", str(trained[0]), "--out", str(tmp_path / "network")]
    assert main([*words, "--epochs", "1", "--hidden-size", "8", "--validation", validation]) == 0
    assert load_checkpoint(tmp_path / "network").info.live is None
    assert capsys.readouterr().err.count("live_not_fitted") == 1


def test_where_the_network_is_always_right_lists_learn_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    markov_clicks(1.0, 300, 8, 1).write_csv(tmp_path / "log.csv")
    words = ["fit", "--clicks", str(tmp_path / "log.csv"), "--out", str(tmp_path / "network")]
    assert main([*words, "--hidden-size", "16"]) == 0
    assert load_checkpoint(tmp_path / "network").info.live is None
    assert capsys.readouterr().err.count("live_not_better") == 1


def test_of_a_long_log_the_newest_clicks_are_replayed_and_a_fifth_is_asked() -> None:
    whole = habits(None).sort(pl.col("session_id").cast(pl.Int64), "timestamp_ms")
    found = newest_clicks(whole[:3_000], whole[3_000:], 500)
    assert found["session_id"].to_list() == whole["session_id"][-500:].to_list()
    assert found[ASKED].to_list() == [False] * 400 + [False, True] * 50
    few = newest_clicks(whole[:3_000], whole[3_000:], 100_000)
    assert len(few) == len(whole)
    assert few[ASKED].sum() == 500
