"""A stream replayed through real processes: each next click is judged, and nothing stays behind."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench.live.clicks import as_stream
from bench.live.judge import Judge
from bench.live.replay import Pace, Replay, service
from bench.serving.bundles import write_tiny_bundle
from stream.model.bundle import load_bundle

K = 5
N_CLICKS = 600


def log(random: np.random.Generator, begin_ms: int) -> pl.DataFrame:
    """Clicks of the same sessions a second apart, a third of them on items that nobody knows."""
    items, sessions = random.integers(15, size=N_CLICKS), random.integers(60, size=N_CLICKS)
    return pl.DataFrame(
        {
            "session_id": [f"s{n}" for n in sessions],
            "item_id": [f"item-{n}" for n in items],
            "timestamp_ms": [begin_ms + 1000 * n for n in range(N_CLICKS)],
        }
    )


def test_the_next_click_of_every_session_is_judged_by_what_was_published(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path, n_items=10, k=K, constant=True, idle_timeout_s=None)
    bundle, random = load_bundle(folder), np.random.default_rng(1)
    begin_ms = 1_500_000_000_000
    history, clicks = log(random, begin_ms), log(random, begin_ms + 1000 * N_CLICKS)
    stream = as_stream(history, clicks)
    judge = Judge(stream, bundle.item_index)
    with service(folder, tmp_path, live=False) as running, Replay(running, stream, judge) as replay:
        replay.run(stream.begin, Pace(window_s=120, most_open=100))
        assert replay.answered == stream.begin == N_CLICKS
        running.settle()
        replay.run(len(stream), Pace(window_s=10, most_open=64, per_second=1000))
        assert replay.answered == len(stream)
        assert sum(running.offsets()["clicks"]) == len(stream)
    assert not running.broker.running
    assert not any(worker.running for worker in running.workers)

    found = judge.figures()
    # All lists, those for unknown items among them, are items 0 to 4 in this order.
    targets = clicks.filter(~pl.col("session_id").is_first_distinct())["item_id"]
    place = targets.str.strip_prefix("item-").cast(pl.Int64).to_numpy() + 1
    assert found["predictions"] == len(targets)
    assert found["recall_at_20"] == pytest.approx((place <= K).mean(), abs=1e-4)
    assert found["mrr_at_20"] == pytest.approx(((place <= K) / place).mean(), abs=1e-4)
    known = found["by_target"]["known"]
    assert known["predictions"] == (place <= 10).sum()
    assert set(found["by_outcome"]) <= {"model", "unknown_item", "fallback"}
