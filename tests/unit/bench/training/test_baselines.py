"""The network among the baselines."""

from dataclasses import replace

import pytest

from bench.datasets import DATASETS
from bench.training.baselines import Split, candidates
from tests.unit.train.building import markov_clicks
from train.baselines.popularity import pop
from train.data.clicks import split_by_time
from train.data.sessions import build_sessions
from train.measure.metrics import figures
from train.measure.ranking import rank_targets


@pytest.fixture(scope="module")
def split() -> Split:
    older, newer = split_by_time(markov_clicks(0.9, n_sessions=400, n_items=30, seed=2), 0.2)
    train = build_sessions(older)
    asked = build_sessions(newer, train.catalogue).sessions
    return Split("foursquare-nyc", train.sessions, asked, train.catalogue)


def test_the_network_learns_from_the_sessions_that_baselines_count(split: Split) -> None:
    build, choices = candidates(split)["gru"]
    reached, popular = (
        figures(rank_targets(predictor, split.asked, split.n_items))["mrr_at_20"]
        for predictor in (build(**choices[0]), pop(split.train, split.n_items))
    )
    assert reached > 2 * popular


@pytest.mark.parametrize("name", DATASETS)
def test_epochs_are_tried_up_to_the_schedules(name: str, split: Split) -> None:
    models = candidates(replace(split, dataset=name))
    tried = [choice["epochs"] for choice in models["gru"].choices]
    assert tried[0] == DATASETS[name].epochs
    assert sorted(tried, reverse=True) == tried
    assert min(tried) >= 1
