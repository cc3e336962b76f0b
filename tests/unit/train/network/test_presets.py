import json
from pathlib import Path

import pytest

from train.fit.settings import FitSettings
from train.network.presets import LARGE_LOG, PRESETS, load_preset, sizes_for


def settings(**given: object) -> FitSettings:
    return FitSettings.model_validate({"clicks": "log.csv", "out": "out", **given})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_what_it_names(name: str) -> None:
    fit = settings(preset=name)
    found = {**fit.hyperparameters().model_dump(), **fit.schedule().model_dump()}
    assert {key: found[key] for key in PRESETS[name]} == PRESETS[name]


def test_a_flag_overrides_its_preset() -> None:
    fit = settings(preset="diginetica", learning_rate=0.1, hidden_size=64)
    hyperparameters = fit.hyperparameters(sizes_for(10**7))
    assert (hyperparameters.learning_rate, hyperparameters.hidden_size) == (0.1, 64)
    assert (hyperparameters.batch_size, hyperparameters.momentum) == (64, 0.15)


def test_a_preset_can_be_a_file_and_set_what_has_no_flag(tmp_path: Path) -> None:
    """The published parameters of GRU4Rec for Diginetica, say."""
    file = tmp_path / "official.json"
    file.write_text(json.dumps({"bpreg": 0.9, "elu": 1.0, "momentum": 0.15, "patience": 0}))
    fit = settings(preset=str(file))
    hyperparameters = fit.hyperparameters()
    assert (hyperparameters.bpreg, hyperparameters.elu) == (0.9, 1.0)
    assert (hyperparameters.momentum, fit.schedule().patience) == (0.15, 0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[1]", r"found \[1\], expected an object"),
        ('{"preset": {"colour": 1}}', "'colour' is not a hyperparameter"),
        ('{"patience": "abc"}', "patience=abc: Input should be a valid integer"),
        ('{"order": "foo"}', "order=foo: Input should be 'random' or 'time'"),
        (
            '{"momentum": 0.5, "optimiser": "adam"}',
            "momentum=0.5 cannot be combined with optimiser=adam",
        ),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "preset.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        settings(preset=str(file))
    with pytest.raises(ValueError, match="neither a JSON file nor one of default"):
        load_preset(str(tmp_path / "absent.json"))


def test_sizes_that_are_not_given_follow_from_the_log() -> None:
    small, large = (settings().hyperparameters(sizes_for(n)) for n in (LARGE_LOG - 1, LARGE_LOG))
    assert (small.batch_size, small.hidden_size, small.learning_rate) == (32, 100, 0.05)
    assert (large.batch_size, large.hidden_size, large.learning_rate) == (64, 256, 0.035)
    assert sizes_for(LARGE_LOG, "adam") == {"batch_size": 64, "hidden_size": 256}
    given = settings(hidden_size=100, optimiser="adam").hyperparameters(
        sizes_for(LARGE_LOG, "adam")
    )
    assert (given.batch_size, given.hidden_size, given.learning_rate) == (64, 100, 0.0015)


def test_another_optimiser_leaves_out_what_the_preset_has_for_its_own() -> None:
    found = settings(preset="diginetica", optimiser="adam").hyperparameters()
    assert (found.momentum, found.initial_accumulator, found.learning_rate) == (0, 0, 0.0015)
    assert (found.hidden_size, found.batch_size) == (256, 64)
    same = settings(preset="diginetica", optimiser="adagrad").hyperparameters()
    assert (same.momentum, same.learning_rate) == (0.15, 0.035)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"normalise": 16, "initial_accumulator": 1e-3, "momentum": 0.15}),
        ({"loss": "bpr-max"}, {"normalise": 0, "initial_accumulator": 0, "momentum": 0.15}),
        ({"normalise": 0}, {"normalise": 0, "initial_accumulator": 0}),
        ({"loss": "bpr-max", "normalise": 8}, {"normalise": 8, "initial_accumulator": 1e-3}),
        ({"optimiser": "adam"}, {"learning_rate": 0.0015, "momentum": 0, "normalise": 16}),
        ({"optimiser": "sgd"}, {"learning_rate": 0.5, "initial_accumulator": 0}),
    ],
    ids=str,
)
def test_what_is_not_given_suits_the_loss_and_the_optimiser(
    given: dict[str, object], expected: dict[str, float]
) -> None:
    hyperparameters = settings(**given).hyperparameters()
    assert {name: getattr(hyperparameters, name) for name in expected} == expected
