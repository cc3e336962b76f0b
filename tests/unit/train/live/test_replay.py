"""A replay against the same rules written out, and the command that runs it."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stream.contract.click import TRAIL_CLICKS
from stream.live.blend import Blend
from stream.live.rules import BACKWARD, DISTANCES, SHRINKAGE, Rules
from tests.unit.train.building import markov_clicks
from train.__main__ import main
from train.data.sessions import TARGET_WEIGHT, build_sessions
from train.live.network import Network
from train.live.replay import (
    ASKED,
    MISSED,
    Question,
    Replay,
    bias_ranks,
    one_after_the_other,
)
from train.measure.predictor import ModelPredictor
from train.measure.ranking import rank_targets
from train.network.checkpoint import load_checkpoint

N_ITEMS = 30
COUNTS = Blend(np.tile([*np.ones(9), 0.0], (5, 1)))
EQUAL = Blend(np.ones((5, 10)))


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
    """The ranks of all next clicks by plain sums over all clicks before the list's own."""
    ranks: list[int] = []
    trails: dict[str, list[str]] = {}
    steps: list[tuple[str, str, float, int]] = []
    past: list[tuple[str, int]] = []
    rows = list(clicks.iter_rows())
    for number, (session, item, now) in enumerate(rows):
        before = trails.get(session, [])
        trail = trails[session] = [*before, item]
        following = next((i for s, i, _ in rows[number + 1 :] if s == session), None)
        if following is not None:
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
            add(item, 1.0, next(source))
            ages: dict[str, float] = {}
            for age, name in enumerate(reversed(trail)):
                if name != item:
                    ages.setdefault(name, 1 / age)
            weight = next(source)
            for name, share in ages.items():
                add(name, share / sum(ages.values()), weight)
            if rules.excludes_seen:
                score = {name: s for name, s in score.items() if name not in trail}
            found = score.get(following, 0.0)
            ranks.append(
                sum(s >= found * (1 - 1e-9) for s in score.values()) if found > 0 else MISSED
            )
        for former, weight in zip(reversed(before), DISTANCES, strict=False):
            if former != item:
                steps += [(former, item, weight, now), (item, former, weight * BACKWARD, now)]
        past.append((item, now))
    return ranks


@pytest.fixture(autouse=True)
def _is_popular_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.live.view.POPULAR_EVERY_MS", 0)


@pytest.mark.parametrize("excludes_seen", [False, True])
def test_ranks_are_those_of_plain_sums(clicks: pl.DataFrame, excludes_seen: bool) -> None:
    rules = Rules(100_000, 6_250, excludes_seen)
    weights = [0.3, 0.1, 0.1, 0.05, 0.05, 0.02, 0.2, 0.1, 0.08]
    mixed = Blend(np.tile([*weights, 0.0], (5, 1)))
    questions = [*Replay(rules).questions(all_asked(clicks))]
    expected = expected_ranks(clicks, rules, weights)
    assert len(expected) > 500
    assert [question.rank(mixed) for question in questions] == expected
    assert all(np.all(question.shares(COUNTS) <= 1 + 1e-12) for question in questions)


def all_asked(clicks: pl.DataFrame) -> pl.DataFrame:
    return one_after_the_other(clicks[:0], clicks)


def shares(questions: Iterable[Question]) -> list[list[float]]:
    """What tells one question from another; in the last digit it depends on the rows' order."""
    return [question.shares(COUNTS).round(12).tolist() for question in questions]


def test_clicks_of_the_newer_log_are_asked_and_both_are_learnt(clicks: pl.DataFrame) -> None:
    sessions = clicks["session_id"].to_list()
    targets = [
        n + 1 + sessions[n + 1 :].index(s) for n, s in enumerate(sessions) if s in sessions[n + 1 :]
    ]
    rules = Rules(100_000, 6_250, excludes_seen=False)
    whole = zip(targets, shares(Replay(rules).questions(all_asked(clicks))), strict=True)
    part = one_after_the_other(clicks[:400], clicks[400:])
    assert min(targets.index(row) for row in range(400, 600) if row in targets) < 400 - 5
    assert shares(Replay(rules).questions(part)) == [own for row, own in whole if row >= 400]


def test_clicks_that_are_no_targets_are_learnt_alone(clicks: pl.DataFrame) -> None:
    rules = Rules(100_000, 6_250, excludes_seen=False)
    weights = np.arange(600) % 3 / 2
    asked = all_asked(clicks.with_columns(pl.Series(TARGET_WEIGHT, weights)))
    found = [*Replay(rules).questions(asked)]
    whole = shares(Replay(rules).questions(all_asked(clicks)))
    assert len(found) == asked[ASKED].sum() < 0.8 * len(whole)
    assert all(own in whole for own in shares(found))


def test_no_more_is_asked_than_wanted_evenly_spread(clicks: pl.DataFrame) -> None:
    rules = Rules(100_000, 6_250, excludes_seen=False)
    whole = shares(Replay(rules).questions(all_asked(clicks)))
    found = shares(Replay(rules).questions(all_asked(clicks), most=20))
    places = [0]
    for own in found:
        places.append(whole.index(own, places[-1]))
    assert len(found) == 20
    assert np.diff(places).max() < 2 * len(whole) / 20


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


def with_network(trained: tuple[Path, Path, Path], log: pl.DataFrame) -> list[Question]:
    network = Network(load_checkpoint(trained[2]))
    network.show(log)
    rules = Rules(100_000, 6_250, excludes_seen=False)
    return [*Replay(rules, network, (0.0, 1.0)).questions(all_asked(log))]


def test_the_network_alone_ranks_as_it_is_evaluated(trained: tuple[Path, Path, Path]) -> None:
    log = pl.read_csv(trained[0], schema_overrides={"session_id": pl.String, "item_id": pl.String})
    checkpoint = load_checkpoint(trained[2])
    sessions = build_sessions(log, checkpoint.catalogue).sessions
    ranks = rank_targets(ModelPredictor(checkpoint.model), sessions, len(checkpoint.catalogue))
    questions = with_network(trained, log)
    static = [question.static_rank for question in questions]
    assert sorted(static) == sorted(ranks.rank.tolist())
    assert [question.own_rank(0.0) for question in questions] == static
    assert [question.own_rank(1.0) for question in questions] != static
    alone = np.zeros((5, 10))
    alone[:, -1] = 1.0
    assert [question.rank(Blend(alone)) for question in questions] == static
    assert [question.rank(Blend(alone, 1.0)) for question in questions] != static


def test_the_network_has_no_part_after_an_item_that_it_does_not_know(
    trained: tuple[Path, Path, Path],
) -> None:
    items = ["1", "unknown", "2", "unknown", "3"]
    log = pl.DataFrame(
        {"session_id": ["s"] * 5, "item_id": items, "timestamp_ms": [1000, 2000, 3000, 4000, 5000]}
    )
    asked = with_network(trained, log)
    without = with_network(trained, log.filter(pl.col("item_id") != "unknown"))
    assert [question.is_known for question in asked] == [True, False, True, False]
    assert asked[1].candidates(EQUAL) is asked[1].of_view
    # Its last list still stands.
    static = [question.static_rank for question in asked]
    assert [question.own_rank(0.0) for question in asked] == static
    assert static == [MISSED, without[0].static_rank, MISSED, without[1].static_rank]
    first = with_network(trained, log[1:])
    assert first[0].static_rank == MISSED  # nothing is known yet
    assert not first[0].of_network


def test_items_of_the_session_are_in_no_list_where_the_rules_say_so(
    trained: tuple[Path, Path, Path],
) -> None:
    log = pl.DataFrame(
        {"session_id": ["s"] * 4, "item_id": ["1", "2", "1", "3"], "timestamp_ms": [1, 2, 3, 4]}
    ).with_columns(pl.col("timestamp_ms") + 10**12)
    network = Network(load_checkpoint(trained[2]))
    network.show(log)
    rules = Rules(100_000, 6_250, excludes_seen=True)
    asked = [*Replay(rules, network, (0.0,)).questions(all_asked(log))]
    assert [question.own_rank(0.0) == MISSED for question in asked] == [False, True, False]
    assert asked[1].rank(EQUAL) == MISSED
    listed = asked[2].candidates(EQUAL)
    of_network = listed.share[listed.source == len(rules.sources)]
    assert of_network.sum() == pytest.approx(asked[2].share_known)  # of all, seen ones too


@pytest.mark.parametrize("excludes_seen", [False, True])
def test_ranks_with_many_biases_are_those_of_a_replay_with_each(
    trained: tuple[Path, Path, Path], clicks: pl.DataFrame, excludes_seen: bool
) -> None:
    rng = np.random.default_rng(1)
    items = [str(item) for item in rng.integers(0, N_ITEMS + 5, len(clicks))]  # 5 are unknown
    sessions = [f"s{n}" for n in np.arange(len(clicks)) % 8]
    assert len(clicks) / 8 > TRAIL_CLICKS
    log = all_asked(
        clicks.with_columns(pl.Series("item_id", items), pl.Series("session_id", sessions))
    )
    network = Network(load_checkpoint(trained[2]))
    network.show(log)
    rules = [Rules(100_000, half_life_ms, excludes_seen) for half_life_ms in (5_000, 1_000_000)]
    biases = (0.0, 0.1, 1.0)
    found = bias_ranks(log, network, rules, biases, most=200)
    assert [*found] == [(own, bias) for own in rules for bias in biases]
    for own in rules:
        asked = [*Replay(own, network, biases).questions(log, 200)]
        for bias in biases:
            assert found[own, bias] == [question.own_rank(bias) for question in asked]
    assert len({tuple(ranks) for ranks in found.values()}) == 5  # without a bias they are the same
    assert MISSED in found[rules[0], 0.0]


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
    first_ms = pl.read_csv(trained[0])["timestamp_ms"][0]
    single = pl.DataFrame(
        {
            "session_id": [f"s{n}" for n in range(20)],
            "item_id": ["1", "2"] * 10,
            "timestamp_ms": [first_ms + n for n in range(20)],
        }
    )
    older, newer = tmp_path / "older.csv", tmp_path / "newer.csv"
    single.with_columns(pl.col("timestamp_ms") - 1_000_000).write_csv(older)
    single.with_columns(pl.col("timestamp_ms") + 1_000_000_000).write_csv(newer)
    assert main(["prequential", "--history", str(trained[0]), "--clicks", str(newer)]) == 2
    assert "has no session with a next click" in capsys.readouterr().err
    assert main(["prequential", "--history", str(older), "--clicks", str(trained[1])]) == 2
    assert "newest tenth has 0 next clicks to fit settings on" in capsys.readouterr().err


def test_the_command_refuses_logs_that_do_not_follow_one_another(
    trained: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Their figures would mean nothing, and look like any others."""
    old, new, _ = map(str, trained)
    assert main(["prequential", "--history", new, "--clicks", old]) == 2
    assert f"{old} begins before {new}: expected a log that goes on" in capsys.readouterr().err
    assert main(["prequential", "--history", old, "--clicks", old]) == 2
    assert f"300 sessions are in {old} and in {old} at the same time" in capsys.readouterr().err
