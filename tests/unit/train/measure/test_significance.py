from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tests.unit.train.building import ranks_from
from train.measure.metrics import figures
from train.measure.ranking import Ranks
from train.measure.significance import compare, estimate, holm
from train.measure.slices import by_target


def made_up(n_sessions: int, share_of_hits: float, seed: int, length: int = 4) -> Ranks:
    """Sessions whose clicks are hits at rank 1 together or misses together."""
    rng = np.random.default_rng(seed)
    hit = np.repeat(rng.random(n_sessions) < share_of_hits, length)
    ranks = ranks_from(np.where(hit, 1, 50).tolist(), novel=(rng.random(len(hit)) < 0.7).tolist())
    return replace(
        ranks,
        session=np.repeat(np.arange(n_sessions), length),
        position=np.tile(np.arange(1, length + 1), n_sessions),
    )


def test_an_estimate_is_the_figure_inside_its_interval() -> None:
    ranks = made_up(150, 0.3, seed=1)
    (whole,) = estimate(ranks, ["recall_at_20", "mrr_at_5"])
    for metric, found in whole.figures.items():
        assert found.value == pytest.approx(figures(ranks)[metric])
        assert found.low < found.value < found.high
    for part in estimate(ranks, ["recall_at_20"], by_target(ranks)):
        assert part.predictions == figures(ranks)[f"{part.label}_predictions"]
        expected = figures(ranks)[f"{part.label}_recall_at_20"]
        assert part.figures["recall_at_20"].value == pytest.approx(expected)


def test_the_interval_is_as_wide_as_the_sessions_are_few_not_the_predictions() -> None:
    # 200 sessions that hit or miss as a whole are 200 observations: the binomial's width.
    (whole,) = estimate(made_up(200, 0.3, seed=2), ["recall_at_20"])
    recall, low, high = whole.figures["recall_at_20"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(recall * (1 - recall) / 200), rel=0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        (whole,) = estimate(made_up(80, 0.4, seed=100 + seed, length=1), ["recall_at_20"])
        covered += whole.figures["recall_at_20"].low <= 0.4 <= whole.figures["recall_at_20"].high
    assert covered >= 51  # 95 % of 60 are 57; one in ten thousand such experiments falls below 51


def test_a_part_without_predictions_has_no_figure() -> None:
    ranks = ranks_from([1, 2])  # all novel
    novel, repeat = estimate(ranks, ["recall_at_20"], by_target(ranks))
    assert novel.figures["recall_at_20"].value == 1
    assert repeat.predictions == 0
    assert np.isnan(repeat.figures["recall_at_20"]).all()


def test_no_prediction_at_all_has_no_figure_and_no_error() -> None:
    (whole,) = estimate(ranks_from([]), ["recall_at_20"])
    assert np.isnan(whole.figures["recall_at_20"]).all()
    assert compare(ranks_from([]), ranks_from([]), "recall_at_20").p_value == 1


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_a_model_does_not_differ_from_itself(seed: int) -> None:
    ranks = made_up(20, 0.5, seed)
    assert compare(ranks, ranks, "mrr_at_20") == (0, 0, 0, 1)


def test_a_small_gain_on_every_session_is_sure_and_its_mirror_image_alike() -> None:
    worse = made_up(100, 0.5, seed=3)
    better = replace(worse, rank=np.where(worse.rank == 50, 19, worse.rank))
    there, back = (compare(*pair, "mrr_at_20") for pair in ((better, worse), (worse, better)))
    assert 0 < there.low < there.value < there.high
    assert there.p_value == back.p_value == 1 / 5000
    assert back[:3] == pytest.approx((-there.value, -there.high, -there.low))


def test_chance_alone_is_seldom_called_a_difference() -> None:
    p_values = [
        compare(made_up(60, 0.5, seed), made_up_twin(60, seed), "recall_at_20").p_value
        for seed in range(40)
    ]
    assert 0.2 < np.mean(p_values) < 0.9
    assert sum(p < 0.05 for p in p_values) <= 7  # 2 expected; 8 or more is one in a thousand


def made_up_twin(n_sessions: int, seed: int) -> Ranks:
    """Other hits and misses of the same chance on the same clicks."""
    return replace(made_up(n_sessions, 0.5, seed), rank=made_up(n_sessions, 0.5, 900 + seed).rank)


def test_sign_flips_of_five_sessions_worked_by_hand() -> None:
    # Five sessions, each better by one hit: of 32 sign patterns 2 are as far from 0.
    worse = replace(ranks_from([50] * 5), session=np.arange(5))
    better = replace(worse, rank=np.ones(5, dtype=np.int64))
    assert compare(better, worse, "recall_at_20").p_value == pytest.approx(2 / 32, abs=0.012)


def test_models_of_other_predictions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="the same predictions, found 2 and 3"):
        compare(ranks_from([1, 2]), ranks_from([1, 2, 3]), "recall_at_20")


def test_holms_correction_worked_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
