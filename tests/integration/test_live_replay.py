"""A stream replayed through real processes: each next click is judged, and nothing stays behind."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench.live.clicks import as_stream
from bench.live.judge import Judge
from bench.live.replay import Pace, Replay, service
from bench.serving.bundles import write_tiny_bundle
from stream.live.blend import Blend
from stream.live.rules import PREFIXES, Rules
from stream.model.bundle import Live, load_bundle
from train.live.fit import figures
from train.live.replay import Replay as Prequential
from train.live.replay import one_after_the_other

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


def markov_log(n_sessions: int) -> pl.DataFrame:
    """Sessions of 6 clicks, ten of them at a time, a click a second.

    Four of five next clicks are on the successor of the last item. What was learnt a few seconds
    ago is worth no more than the rest: how far a view is behind depends on the machine.
    """
    random = np.random.default_rng(3)
    follower = random.permutation(50)
    rows = []
    for n in range(n_sessions):
        item = int(random.integers(50))
        for step in range(6):
            follows = random.random() < 0.8
            item = int(follower[item]) if follows else int(random.integers(50))
            rows.append((f"s{n}", f"item-{25 + item}", 6 * n + 10 * step))
    log = pl.DataFrame(rows, schema=["session_id", "item_id", "at"], orient="row")
    log = log.sort("at", maintain_order=True).with_row_index("n")
    return log.select(
        "session_id", "item_id", timestamp_ms=1_500_000_000_000 + 1000 * pl.col("n").cast(pl.Int64)
    )


def test_what_is_published_is_as_good_as_the_replay_offline_says(tmp_path: Path) -> None:
    rules = Rules(3_600_000, 225_000, excludes_seen=False)
    weights = [0.3, 0.1, 0.1, 0.05, 0.05, 0.02, 0.2, 0.1, 0.08, 0.0]
    live = Live(3600, 225, False, 20, 0.0, [weights] * PREFIXES)
    folder = write_tiny_bundle(tmp_path, n_items=50, k=20, live=live, idle_timeout_s=None)
    log = markov_log(700)
    history, clicks = log[:1500], log[1500:]
    asked = one_after_the_other(history, clicks)
    mixed = Blend(np.array(live.weights))
    offline = figures([q.rank(mixed) for q in Prequential(rules).questions(asked)])

    stream = as_stream(history, clicks)
    judge = Judge(stream, load_bundle(folder).item_index)
    with service(folder, tmp_path, live=True) as running, Replay(running, stream, judge) as replay:
        replay.run(stream.begin, Pace(window_s=120, most_open=100))
        running.settle()
        replay.run(len(stream), Pace(window_s=10, most_open=64, per_second=100))
    online = judge.figures()
    for figure, expected in offline.items():
        assert online[figure] == pytest.approx(expected, abs=0.003)
