"""What is fitted on planted structure."""

from pathlib import Path

import numpy as np
import polars as pl

from tests.unit.train.building import markov_clicks
from train.__main__ import main
from train.live.fit import fit_live, worth
from train.live.network import Network
from train.live.replay import ASKED, Replay, one_after_the_other
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
    assert steady is not None
    assert hasty is not None
    assert steady.rules.time_scale_ms >= 16 * 24 * HOUR_MS
    assert hasty.rules.time_scale_ms <= 6 * HOUR_MS
    assert steady.rules.excludes_seen
    assert steady.live is steady.counts
    # One click is known of each session: nearly all goes to what has followed it.
    assert steady.counts.weights[0, :2].sum() > 0.6


def test_without_a_next_click_nothing_is_fitted() -> None:
    clicks = split(habits(None))
    assert fit_live(clicks.with_columns(pl.lit(False).alias(ASKED)), None) is None


def test_items_of_the_session_are_listed_where_they_are_clicked_again() -> None:
    again = habits(None).with_columns(pl.col("timestamp_ms") + 2_000)
    fitted = fit_live(split(pl.concat([habits(None), again])), None)
    assert fitted is not None
    assert not fitted.rules.excludes_seen


def test_the_blend_lists_no_worse_than_its_parts(tmp_path: Path) -> None:
    log = markov_clicks(0.8, 300, 30, 1)
    log.write_csv(tmp_path / "log.csv")
    words = ["fit", "--clicks", str(tmp_path / "log.csv"), "--out", str(tmp_path / "network")]
    assert main([*words, "--epochs", "2", "--hidden-size", "16"]) == 0
    network = Network(load_checkpoint(tmp_path / "network"))
    clicks = one_after_the_other(log[:1_620], log[1_620:])
    network.show(clicks)
    fitted = fit_live(clicks, network)
    assert fitted is not None
    replay = Replay(fitted.rules, network, (0.0, fitted.bias, fitted.live.bias))
    asked = [*replay.questions(clicks)]
    live = worth([question.rank(fitted.live) for question in asked])
    assert live >= worth([question.rank(fitted.counts) for question in asked])
    assert live >= worth([question.own_rank(fitted.bias) for question in asked])
    assert worth([q.own_rank(fitted.bias) for q in asked]) >= worth([q.static_rank for q in asked])
