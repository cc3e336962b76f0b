"""A replay against the same rules written out, and the command that runs it."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stream.live.blend import Blend, fit_weights
from stream.live.rules import BACKWARD, DISTANCES, SHRINKAGE, Rules
from tests.unit.train.building import markov_clicks
from train.__main__ import main
from train.data.sessions import build_sessions
from train.live.network import Network
from train.live.replay import MISSED, STATIC, Asked, Replay
from train.measure.predictor import ModelPredictor
from train.measure.ranking import rank_targets
from train.network.checkpoint import load_checkpoint

N_ITEMS = 30


@pytest.fixture(scope="module")
def clicks() -> pl.DataFrame:
    """Sessions side by side in time, with items that come and go, and repeats."""
    rng = np.random.default_rng(3)
    n = 600
    drift = np.arange(n) // 60
    return pl.DataFrame(
        {
            "session_id": [f"s{number}" for number in (rng.integers(0, 8, n) + 5 * drift)],
            "item_id": [f"i{number}" for number in (rng.integers(0, 9, n) + 3 * drift)],
            "timestamp_ms": np.cumsum(rng.integers(0, 4_000, n)) + 1_500_000_000_000,
        }
    )


def expected_ranks(clicks: pl.DataFrame, rules: Rules, weights: list[float]) -> list[int]:
    """The ranks of all next clicks by plain sums over all clicks before."""
    ranks: list[int] = []
    trails: dict[str, list[str]] = {}
    steps: list[tuple[str, str, float, int]] = []
    past: list[tuple[str, int]] = []
    for session, item, now in clicks.iter_rows():
        trail = trails.setdefault(session, [])
        if trail:
            score: dict[str, float] = {}

            def add(
                name: str, share: float, weight: float, score: dict[str, float] = score
            ) -> None:
                score[name] = score.get(name, 0.0) + weight * share

            source = iter(weights)
            for former in [*trail[: -1 - len(DISTANCES) : -1], *[None] * 3][:3]:
                for half_life in rules.half_lives_ms:
                    weight = next(source)
                    left = [
                        (b, w * 0.5 ** ((now - at) / half_life))
                        for a, b, w, at in steps
                        if a == former
                    ]
                    total = sum(w for _, w in left) + SHRINKAGE
                    for name, w in left:
                        add(name, w / total, weight)
            half_life = rules.popularity_half_life_ms
            left = [(name, 0.5 ** ((now - at) / half_life)) for name, at in past]
            weight = next(source)
            for name, w in left:
                add(name, w / sum(v for _, v in left), weight)
            add(trail[-1], 1.0, next(source))
            ages: dict[str, float] = {}
            for age, name in enumerate(reversed(trail)):
                if name != trail[-1]:
                    ages.setdefault(name, 1 / age)
            weight = next(source)
            for name, share in ages.items():
                add(name, share / sum(ages.values()), weight)
            if rules.excludes_seen:
                score = {name: s for name, s in score.items() if name not in trail}
            found = score.get(item, 0.0)
            ranks.append(
                sum(s >= found * (1 - 1e-9) for s in score.values()) if found > 0 else MISSED
            )
        for former, weight in zip(reversed(trail), DISTANCES, strict=False):
            if former != item:
                steps += [(former, item, weight, now), (item, former, weight * BACKWARD, now)]
        past.append((item, now))
        trail.append(item)
    return ranks


@pytest.mark.parametrize("excludes_seen", [False, True])
def test_ranks_are_those_of_plain_sums(
    clicks: pl.DataFrame, excludes_seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.live.view.POPULAR_EVERY_MS", 0)
    rules = Rules(100_000, excludes_seen)
    weights = [0.3, 0.1, 0.1, 0.05, 0.05, 0.02, 0.2, 0.1, 0.08]
    mixed = Blend(np.tile([*weights, 0.0], (5, 1)))
    asked = Replay(rules).run(clicks, 0, {"counts": mixed})
    expected = expected_ranks(clicks, rules, weights)
    assert len(expected) > 500
    assert asked.ranks["counts"] == expected
    assert np.all(asked.shares_with(None) <= 1 + 1e-12)


def test_what_is_learnt_before_a_time_is_not_asked(clicks: pl.DataFrame) -> None:
    from_ms = int(clicks["timestamp_ms"][400])
    rules = Rules(100_000, excludes_seen=False)
    equal = Blend(fit_weights(np.ones((1, 10)), np.zeros(1, dtype=np.int64)))
    whole = Replay(rules).run(clicks, 0, {"counts": equal})
    part = Replay(rules).run(clicks, from_ms, {"counts": equal})
    n = len(part.prefix)
    assert 100 < n <= 200
    assert part.ranks["counts"] == whole.ranks["counts"][-n:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A log, a newer one with items of its own, and a network of the first."""
    folder = tmp_path_factory.mktemp("live")
    old = markov_clicks(0.8, 300, N_ITEMS, 1)
    new = markov_clicks(0.8, 60, N_ITEMS + 5, 2).with_columns(
        session_id="new-" + pl.col("session_id"),
        timestamp_ms=pl.col("timestamp_ms") + 10_000_000,
    )
    for name, log in (("old", old), ("new", new)):
        further = log.with_columns(campaign=pl.lit("x")) if name == "old" else log
        further.write_csv(folder / f"{name}.csv")
    words = ["fit", "--clicks", str(folder / "old.csv"), "--out", str(folder / "network")]
    assert main([*words, "--epochs", "1", "--hidden-size", "8"]) == 0
    return folder / "old.csv", folder / "new.csv", folder / "network"


def replay_with_network(trained: tuple[Path, Path, Path], log: pl.DataFrame) -> Asked:
    network = Network(load_checkpoint(trained[2]))
    network.show(log)
    rules = Rules(100_000, excludes_seen=False)
    return Replay(rules, network).run(log, 0, {}, (0.0, 1.0))


def test_the_network_alone_ranks_as_it_is_evaluated(trained: tuple[Path, Path, Path]) -> None:
    log = pl.read_csv(trained[0], schema_overrides={"session_id": pl.String, "item_id": pl.String})
    checkpoint = load_checkpoint(trained[2])
    sessions = build_sessions(log, checkpoint.catalogue).sessions
    ranks = rank_targets(ModelPredictor(checkpoint.model), sessions, len(checkpoint.catalogue))
    asked = replay_with_network(trained, log)
    assert sorted(asked.ranks[STATIC]) == sorted(ranks.rank.tolist())
    assert asked.ranks["bias-0"] == asked.ranks[STATIC]
    assert asked.ranks["bias-1"] != asked.ranks[STATIC]


def test_an_item_that_the_network_does_not_know_is_missed_and_moves_nothing(
    trained: tuple[Path, Path, Path],
) -> None:
    items = ["1", "unknown", "2", "unknown"]
    log = pl.DataFrame(
        {"session_id": ["s"] * 4, "item_id": items, "timestamp_ms": [1000, 2000, 3000, 4000]}
    )
    asked = replay_with_network(trained, log)
    without = replay_with_network(trained, log.filter(pl.col("item_id") != "unknown"))
    assert [asked.ranks[STATIC][n] == MISSED for n in range(3)] == [True, False, True]
    assert asked.ranks[STATIC][1] == without.ranks[STATIC][0]
    first = replay_with_network(trained, log[1:])
    assert first.ranks[STATIC][0] == MISSED  # nothing is known yet


def test_the_command_prints_each_part_and_the_blend(
    trained: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, network = map(str, trained)
    words = ["prequential", "--history", old, "--clicks", new]
    assert main([*words, "--checkpoint", network, "--served", network]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in result["rows"]}
    assert [*rows] == ["static", next(n for n in rows if n.startswith("bias-")), "counts", "live"]
    assert result["predictions"] == 300
    assert rows["live"]["recall_at_20"] >= rows["static"]["recall_at_20"]
    assert main(words) == 0
    alone = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in alone["rows"]] == ["counts"]


def test_the_command_refuses_logs_without_a_next_click(
    trained: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = tmp_path / "single.csv"
    pl.DataFrame(
        {"session_id": ["a", "b"], "item_id": ["1", "2"], "timestamp_ms": [10**12, 10**12 + 1000]}
    ).write_csv(single)
    assert main(["prequential", "--history", str(trained[0]), "--clicks", str(single)]) == 2
    assert "has no session with a next click" in capsys.readouterr().err
    assert main(["prequential", "--history", str(single), "--clicks", str(trained[1])]) == 2
    assert "history has 2 sessions, too few" in capsys.readouterr().err
