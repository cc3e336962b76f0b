"""Baselines as a command line names them."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from tests.unit.train.baselines.asking import scores_after
from tests.unit.train.building import sessions_of
from train.baselines.named import BASELINES, BaselineName, build_baseline, is_baseline
from train.baselines.neighbours import vmis_knn
from train.command import TrainError
from train.evaluate import EvaluateSettings

TRAINING = sessions_of([[0, 1, 0, 1], [0, 2], [2, 0, 1, 3]])


def test_parameters_reach_the_method() -> None:
    named = build_baseline("vmis-knn:m=2:k=1", TRAINING, 5)
    expected = scores_after(vmis_knn(TRAINING, 5, m=2, k=1), [0, 1])
    assert np.array_equal(scores_after(named, [0, 1]), expected)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("vmis", "'vmis' is not a baseline, expected one of pop, recent-pop"),
        ("vmis-knn:n=1", "vmis-knn has no parameter 'n', expected one of m, k, window"),
        ("markov:m=1", "markov has no parameter 'm'"),
        ("vmis-knn:m=1.5", "m of vmis-knn is '1.5', expected a whole number"),
        ("stan:click_scale", "click_scale of stan is '', expected a number"),
        ("recent-pop", "recent-pop needs half_life_s, as in recent-pop:half_life_s=1"),
    ],
)
def test_a_wrong_name_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        TypeAdapter(BaselineName).validate_python(text)


@pytest.mark.parametrize("text", ["vmis-knn:k=600", "stan:k=0", "stan:click_scale=0"])
def test_a_value_the_method_cannot_work_with_is_one_sentence(text: str) -> None:
    with pytest.raises(TrainError, match=rf"{text}: .* requires 0 < k <= m .* found"):
        build_baseline(text, TRAINING, 5)


def test_a_name_is_known_with_and_without_parameters() -> None:
    assert is_baseline("stan") and is_baseline("stan:k=9") and not is_baseline("model")


def test_the_help_of_evaluate_names_every_baseline() -> None:
    help_text = EvaluateSettings.model_fields["baselines"].description or ""
    assert all(name in help_text for name in BASELINES)
