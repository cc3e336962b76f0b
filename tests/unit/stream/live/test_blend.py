"""Shares of sources, their sum, and the weights that fit what came."""

import numpy as np
import pytest

from stream.live.blend import (
    Blend,
    Scored,
    biased,
    blend,
    fit_sharpness,
    fit_weights,
    network_candidates,
)
from stream.live.counts import Decayed
from stream.live.rules import POPULAR, Rules, prefix_class
from stream.live.view import Candidates, View

RULES = Rules(time_scale_ms=16_000, popularity_half_life_ms=1_000, excludes_seen=False)


def shares(found: Candidates) -> dict[str, dict[int, float]]:
    by_source: dict[str, dict[int, float]] = {name: {} for name in RULES.sources}
    for item, source, share in zip(*(part.tolist() for part in found), strict=True):
        assert item not in by_source[RULES.sources[source]]
        by_source[RULES.sources[source]][item] = share
    return by_source


def test_each_source_gives_shares_of_what_it_has_counted() -> None:
    view, counts = View(RULES), Decayed[int](RULES.half_lives_ms, 0)
    counts.add(1, 3.0, 0)
    counts.add(2, 1.0, 16_000)
    view.put(5, counts)
    for item, at_ms in ((1, 0), (2, 1_000), (2, 1_000)):
        view.add_click(item, at_ms)
    found = shares(view.candidates([7, 5, 6], 16_000))
    assert found["transitions-1-1"] == {}  # nobody knows what follows 6
    # Of 5, the item before: 3 clicks of a half-life ago, 1 of now, and the shrinkage.
    assert found["transitions-2-1"] == pytest.approx({1: 1.5 / 2.6, 2: 1 / 2.6})
    longer = 3.0 * 0.5 ** (1 / 8)
    assert found["transitions-2-2"] == pytest.approx(
        {1: longer / (longer + 1.1), 2: 1 / (longer + 1.1)}
    )
    assert found["popularity"] == pytest.approx({1: 0.5 / 2.5, 2: 2 / 2.5})
    assert found["last"] == {6: 1.0}
    assert found["earlier"] == pytest.approx({5: 1 / 1.5, 7: 0.5 / 1.5})
    assert view.clicks(np.array([1, 2, 9_999]), 2_000) == pytest.approx([0.25, 1.0, 0.0])
    assert view.share_of(np.array([2, 9_999])) == pytest.approx(0.8)


def test_a_view_of_nothing_lists_the_session_itself() -> None:
    assert View(RULES).share_of(np.array([4])) == 1.0
    found = View(RULES).candidates([3], 0)
    assert shares(found) == {name: {} for name in RULES.sources} | {"last": {3: 1.0}}
    listed = blend(found, np.ones(len(RULES.sources)), excluded=[3])
    assert len(listed.item) == 0


def test_popularity_outlives_any_pause_and_keeps_the_most_popular_alone() -> None:
    view = View(RULES)
    for item in range(3 * POPULAR):
        view.add_click(item, 0)
        view.add_click(item, 10_000_000 + item)
    found = shares(view.candidates([0], 10_000_000 + 3 * POPULAR))["popularity"]
    assert sorted(found) == [*range(2 * POPULAR, 3 * POPULAR)]
    assert sum(found.values()) < 1


def test_what_follows_an_item_is_forgotten_at_last() -> None:
    view, counts = View(RULES), Decayed[int](RULES.half_lives_ms, 0)
    counts.add(1, 3.0, 0)
    view.put(5, counts)
    ages_ms = [1_023 * 16_000, 100_000 * 16_000]
    for_ever = [shares(view.candidates([5], at_ms))["transitions-1-1"] for at_ms in ages_ms]
    assert [found[1] for found in for_ever] == pytest.approx([0.0, 0.0])


def test_a_list_adds_up_the_weighted_shares() -> None:
    found = Candidates(
        np.array([4, 2, 2, 9, 7]), np.array([0, 0, 1, 1, 2]), np.array([0.6, 0.4, 0.5, 0.5, 1.0])
    )
    weights = np.array([0.5, 0.4, 0.0])
    listed = blend(found, weights)
    assert listed.item.tolist() == [2, 4, 9]
    assert listed.score == pytest.approx([0.4, 0.3, 0.2])
    assert blend(found, weights, excluded=[4, 8]).item.tolist() == [2, 9]
    none = np.array([], dtype=np.int64)
    empty = blend(Candidates(none, none, np.array([])), weights)
    assert isinstance(empty, Scored)
    assert len(empty.item) == 0


def test_the_network_gives_no_more_than_what_it_knows_is_clicked() -> None:
    scores = biased(np.array([0.0, 1.0, 5.0]), np.array([7.95, 0.95, 0.0]), 1.0)
    assert scores == pytest.approx([np.log(8.0), 1.0, 5.0 + np.log(0.05)])
    found = network_candidates(np.array([10, 11]), scores[:2], 5, 0.5)
    assert found.item.tolist() == [10, 11]
    assert found.share == pytest.approx(0.5 * np.array([8, np.e]) / (8 + np.e))
    assert found.source.tolist() == [5, 5]
    sharper = network_candidates(np.array([10, 11]), scores[:2], 5, 0.5, sharpness=2.0)
    assert sharper.share == pytest.approx(0.5 * np.array([64, np.e**2]) / (64 + np.e**2))


def test_the_fitted_weights_are_those_that_the_clicks_were_drawn_with() -> None:
    rng = np.random.default_rng(1)
    true = np.array([0.6, 0.3, 0.1])
    sources = rng.dirichlet(np.full(50, 0.1), size=3)
    items = rng.choice(50, p=true @ sources, size=20_000)
    prefix = np.zeros(len(items), dtype=np.int64)
    weights = fit_weights(sources[:, items].T, prefix, steps=300)
    assert weights[0] == pytest.approx(true, abs=0.03)
    assert weights[4] == pytest.approx(weights[0])  # of which there were none
    assert Blend(weights).bias == 0.0


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.8])
def test_the_fitted_sharpness_is_that_of_the_softmax_that_clicks_were_drawn_by(
    sharpness: float,
) -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(2_000, 20))
    gumbel = rng.gumbel(size=scores.shape)  # its largest sum is a draw from the softmax
    clicked = (sharpness * scores + gumbel).argmax(axis=1)
    assert fit_sharpness(scores - scores[np.arange(2_000), clicked][:, None]) == sharpness


def test_five_clicks_and_more_are_one_class() -> None:
    assert [prefix_class(n) for n in (1, 2, 5, 6, 900)] == [0, 1, 4, 4, 4]
