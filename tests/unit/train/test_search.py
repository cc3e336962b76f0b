import json
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import optuna
import pytest
from optuna.trial import TrialState
from pydantic import ValidationError

from tests.unit.train.building import markov_clicks
from train.__main__ import main
from train.command import TrainError
from train.fit.loop import fit
from train.fit.resume import FitError
from train.fit.settings import FitSettings
from train.network.checkpoint import CheckpointInfo, load_checkpoint
from train.network.presets import PRESETS
from train.search import command
from train.search.command import run_search
from train.search.plot import plot_search
from train.search.settings import SearchSettings
from train.search.study import ended, open_study, take_up_killed

SMALL = {"hidden_size": "8", "n_negatives": "16", "batch_size": "32"}


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "clicks.parquet"
    markov_clicks(0.9, n_sessions=100, n_items=40, seed=1).write_parquet(path)
    return path


@pytest.fixture
def no_picture() -> Iterator[None]:
    """Spare a search its plot, half of the time of so small a one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "plot_search", lambda path, study, metric: None)
        yield


without_picture = pytest.mark.usefixtures("no_picture")


def settings(clicks: Path, study: Path, **other: Any) -> SearchSettings:
    few = {"space": ("learning_rate", "momentum"), "trials": 3, "epochs": 2}
    fixed = SMALL | other.pop("fixed", {})
    return SearchSettings(clicks=clicks, study=study, fixed=fixed, **{**few, **other})


def trials(of: SearchSettings) -> list[optuna.trial.FrozenTrial]:
    with open_study(of) as study:
        return study.get_trials()


def outcomes(of: SearchSettings) -> list[tuple[dict[str, Any], float | None]]:
    with open_study(of) as study:
        return [(trial.params, trial.value) for trial in ended(study)]


def test_the_best_trial_comes_as_a_preset_that_trains_to_its_value(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = settings(clicks, tmp_path / "mine", context=("gap",), seeds=2)
    run_search(search)
    best = json.loads((search.study / "best.json").read_text())
    assert matplotlib.image.imread(search.study / "search.png").std() > 0.05
    printed = capsys.readouterr().out
    comment, fit_command, entry = printed[printed.index("# trial") :].split("\n", 2)
    assert f"of 3: ndcg_at_20 {best['value']:.4f}" in comment
    assert best["value"] == max(value or 0 for _, value in outcomes(search))
    assert best["value"] == pytest.approx(sum(best["values"]) / 2)
    assert best["values"][0] != best["values"][1]

    out = tmp_path / "out"
    flags = shlex.split(fit_command.removeprefix("python -m train").removesuffix("..."))
    assert main([*flags, "--clicks", str(clicks), "--out", str(out)]) == 0
    info = load_checkpoint(out).info
    assert info.metrics["ndcg_at_20"] == best["values"][0]
    assert info.epoch == best["epochs"][0]

    preset = tomllib.loads(entry)["mine"]
    assert preset == best["preset"]
    again = FitSettings(clicks=clicks, out=out, preset=str(search.study / "best.json"))
    assert again.hyperparameters().model_dump() == info.hyperparameters
    assert (again.epochs, again.context) == (2, ("gap",))


def a_trial(
    value: float | None, number: int = 0, intermediate: dict[int, float] | None = None
) -> optuna.trial.FrozenTrial:
    """A finished trial, or without a value a pruned one."""
    return optuna.trial.create_trial(
        state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
        value=value,
        intermediate_values=intermediate or {},
        user_attrs={"preset": {}, "result": {"values": [value], "epochs": [1]}},
        params={"learning_rate": 0.01 * (number + 1), "loss": ("bpr-max", "top1-max")[number % 2]},
        distributions={
            "learning_rate": optuna.distributions.FloatDistribution(0.01, 0.3, log=True),
            "loss": optuna.distributions.CategoricalDistribution(("bpr-max", "top1-max")),
        },
    )


@pytest.mark.parametrize("n_finished", [1, 12], ids=["one trial", "enough to say what matters"])
def test_the_picture_shows_finished_and_pruned_trials(tmp_path: Path, n_finished: int) -> None:
    study = optuna.create_study(direction="maximize")
    for number in range(n_finished):
        study.add_trial(a_trial(0.3 + 0.01 * number, number))
    without = picture(tmp_path / "without.png", study)
    study.add_trial(a_trial(None, intermediate={1: 0.1, 2: 0.31}))
    study.add_trial(a_trial(None))  # its loss was no number: it has no place in the picture
    assert (picture(tmp_path / "with.png", study) != without).any()


def picture(path: Path, study: optuna.Study) -> Any:
    plot_search(path, study, "ndcg_at_20")
    image = matplotlib.image.imread(path)
    assert image.std() > 0.05, "more than an empty page"
    return image


@without_picture
def test_the_first_trial_is_the_preset_and_what_is_given_is_never_drawn(
    clicks: Path, tmp_path: Path
) -> None:
    search = SearchSettings(
        clicks=clicks,
        study=tmp_path,
        preset="rsc15-100k",
        trials=2,
        epochs=1,
        fixed={"hidden_size": "8"},
    )
    run_search(search)
    first, second = trials(search)
    expected = {**PRESETS["rsc15-100k"], "hidden_size": 8, "epochs": 1}
    assert expected.items() <= first.user_attrs["preset"].items()
    assert "hidden_size" not in second.params
    assert second.user_attrs["preset"]["hidden_size"] == 8
    assert {"learning_rate", "learning_rate@adam"} & second.params.keys()


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs."""


def kill_in_training(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be killed in the training of this number from now, its checkpoint half done."""
    done = 0

    def killed(*arguments: Any, **named: Any) -> CheckpointInfo:
        nonlocal done
        done += 1
        info = fit(*arguments, **named)
        if done == number:
            raise Killed
        return info

    monkeypatch.setattr(command, "fit", killed)


@without_picture
def test_a_killed_search_goes_on_to_the_trials_of_an_unbroken_one(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = settings(clicks, tmp_path / "unbroken", epochs=1)
    run_search(unbroken)
    broken = settings(clicks, tmp_path / "broken", epochs=1)
    kill_in_training(2, monkeypatch)
    with pytest.raises(Killed):
        run_search(broken)
    assert len(outcomes(broken)) == 1
    monkeypatch.undo()
    run_search(broken)

    assert outcomes(broken) == outcomes(unbroken)
    states = [trial.state.name for trial in trials(broken)]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    killed, retried = trials(broken)[1:3]
    assert killed.params == retried.params
    assert not list(broken.study.glob("trial-*")), "no checkpoint is left"


@without_picture
def test_a_finished_search_trains_nothing_and_more_trials_go_on(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = settings(clicks, tmp_path, epochs=1, trials=1, keep_checkpoints=True)
    run_search(search)
    before = outcomes(search)
    kill_in_training(1, monkeypatch)
    run_search(search)
    monkeypatch.undo()
    run_search(search.model_copy(update={"trials": 2}))
    assert outcomes(search)[:1] == before
    assert len(outcomes(search)) == 2
    for trial in trials(search):
        kept = load_checkpoint(tmp_path / f"trial-{trial.number}" / "seed-1")
        assert kept.info.metrics["ndcg_at_20"] == trial.value


def test_a_trial_that_kills_its_process_again_and_again_is_given_up(
    clicks: Path, tmp_path: Path
) -> None:
    search = settings(clicks, tmp_path)
    with open_study(search) as study:
        study.enqueue_trial({"learning_rate": 0.2})
        for kill in range(3):
            trial = study.ask()
            assert trial.number == kill
            assert trial.suggest_float("learning_rate", 0.01, 0.3, log=True) == 0.2
            take_up_killed(search, study)
        assert [t.state.name for t in study.get_trials()] == ["FAIL", "FAIL", "PRUNED"]


@without_picture
def test_a_trial_that_lags_is_pruned_and_a_search_without_pruning_has_none(
    clicks: Path, tmp_path: Path
) -> None:
    search = settings(clicks, tmp_path, trials=1, epochs=3)
    run_search(search)
    with open_study(search) as study:
        for _ in range(5):
            study.add_trial(a_trial(0.99, intermediate={1: 0.99, 2: 0.99, 3: 0.99}))
    run_search(search.model_copy(update={"trials": 7}))
    lagging = trials(search)[-1]
    assert lagging.state.name == "PRUNED"
    assert list(lagging.intermediate_values) == [1]
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["trials"], best["pruned"]) == (7, 1)
    run_search(search.model_copy(update={"trials": 8, "prune": False}))
    patient = trials(search)[-1]
    assert patient.state.name == "COMPLETE"
    assert list(patient.intermediate_values) == [1, 2, 3]


@without_picture
def test_a_trial_whose_loss_is_no_number_is_a_bad_one_and_the_search_goes_on(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = 0

    def diverges_once(*arguments: Any, **named: Any) -> CheckpointInfo:
        nonlocal done
        done += 1
        if done == 1:
            raise FitError("the loss of epoch 1 is nan")
        return fit(*arguments, **named)

    monkeypatch.setattr(command, "fit", diverges_once)
    search = settings(clicks, tmp_path, trials=2, epochs=1)
    with pytest.raises(TrainError, match="none of 1 trials finished with a finite loss"):
        run_search(search.model_copy(update={"trials": 1}))
    run_search(search)
    assert [t.state.name for t in trials(search)] == ["PRUNED", "COMPLETE"]


def test_no_trial_begins_after_the_time_is_over(clicks: Path, tmp_path: Path) -> None:
    search = settings(clicks, tmp_path, time_budget_s=1e-9, epochs=1)
    with pytest.raises(TrainError, match="none of 0 trials"):
        run_search(search)


@pytest.mark.parametrize(
    "fixed",
    [
        {},
        {"context": ("hour", "gap")},
        {"cell": "window"},
        {"embedding": "one-hot"},
        {"embedding": "one-hot", "n_layers": 1},
        {"optimiser": "adam", "preset": "rsc15-100k"},
        {"optimiser": "sgd"},
        {"momentum": 0.2},
        {"loss": "softmax"},
        {"loss": "cross-entropy", "normalise": 12.0},
    ],
    ids=str,
)
def test_every_draw_fits_together_and_stays_in_the_space(fixed: dict[str, Any]) -> None:
    others = {name: fixed[name] for name in fixed.keys() & {"context", "preset"}}
    given = {name: str(value) for name, value in fixed.items() if name not in others}
    search = SearchSettings(clicks="log.csv", study=Path("study"), fixed=given, **others)
    space = search.search_space()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn: set[str] = set()
    for _ in range(100):
        values = space.draw(trial := study.ask())
        drawn |= trial.params.keys()
        hyperparameters = search.hyperparameters(values)  # or it raises
        for name, value in {**fixed, **values}.items():
            if name not in ("context", "preset"):
                assert getattr(hyperparameters, name) == value
    assert drawn == {d.name for d in space.dimensions} - without_meaning(fixed)


def without_meaning(fixed: dict[str, Any]) -> set[str]:
    """Dimensions that nothing is drawn from, by hand."""
    rates = {"adagrad": "learning_rate", "adam": "learning_rate@adam", "sgd": "learning_rate@sgd"}
    never = {"learning_rate@sgd"}
    if "optimiser" in fixed:
        never = {rate for rule, rate in rates.items() if rule != fixed["optimiser"]}
    if fixed.get("optimiser") == "adam":
        never |= {"momentum"}
    if fixed.get("optimiser", "adagrad") != "adagrad":
        never |= {"initial_accumulator"}
    if "momentum" in fixed:
        never |= {"learning_rate@adam"}
    if fixed.get("cell") == "window":
        never |= {"n_layers"}
    if "context" not in fixed:
        never |= {"input_context", "transition_context"}
    if fixed.get("loss") == "softmax":
        never |= {"n_negatives", "sample_alpha"}
    return never


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"space": ("colour",)}, "space=colour is not one of cell, hidden_size"),
        (
            {"space": ("momentum",), "fixed": {"momentum": "0.1"}},
            "space=momentum and fixed=momentum=0.1: a hyperparameter is either searched or fixed",
        ),
        (
            {"space": ("sample_alpha",), "fixed": {"loss": "softmax"}},
            "space=sample_alpha has no effect with loss=softmax",
        ),
        ({"space": ("input_context",)}, "space=input_context has no effect with context=none"),
        ({"metric": "accuracy"}, "metric=accuracy is not one of recall_at_1"),
        ({"validation": 0.0}, "validation=0 leaves nothing to compare"),
        (
            {"fixed": {"momentum": "0.1", "optimiser": "adam"}},
            "momentum=0.1 cannot be combined with optimiser=adam",
        ),
        ({"fixed": {"colour": "1"}}, "fixed=colour is not a hyperparameter"),
        (
            {"fixed": {"embedding": "one-hot"}, "context": ("hour",), "space": ("bptt",)},
            "input_context=concat cannot be combined with embedding=one-hot",
        ),
        ({"trials": 0}, "greater than 0"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_before_anything_is_read(
    wrong: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        SearchSettings(clicks="none.csv", study=Path("none"), **wrong)
    (error,) = refused.value.errors()
    assert sentence in error["msg"]
    assert len(error["msg"].splitlines()) == 1


@without_picture
def test_a_study_of_something_else_is_refused(clicks: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    run_search(settings(clicks, study, trials=1, epochs=1))
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"metric": "mrr_at_5"}, r"study.db was created with metric=ndcg_at_20, not mrr_at_5"),
        ({"epochs": 2}, "epochs=1, not 2"),
        ({"fixed": {"loss": "softmax"}}, "loss=cross-entropy, not softmax"),
        ({"space": ("momentum",)}, "learning_rate=drawn: 0.01 to 0.3 .*, not 0.05"),
    )
    for change, sentence in refused:
        # The log is not there: refused before it is looked for.
        other = settings(Path("none.csv"), study, trials=1, **{"epochs": 1, **change})
        with pytest.raises(TrainError, match=sentence):
            run_search(other)
    newer = tmp_path / "newer.parquet"
    markov_clicks(0.9, n_sessions=100, n_items=40, seed=2).write_parquet(newer)
    with pytest.raises(TrainError, match=r"created with log=.*content \w+, not .*content"):
        run_search(settings(newer, study, trials=1, epochs=1))


def test_a_study_of_another_process_or_no_study_is_refused(clicks: Path, tmp_path: Path) -> None:
    search = settings(clicks, tmp_path)
    with open_study(search), pytest.raises(TrainError, match="in use by another search"):
        run_search(search)
    (tmp_path / "study.db").write_text("not a database, whatever its name says" * 100)
    with pytest.raises(TrainError, match=r"study.db cannot be read as an Optuna study"):
        run_search(search)
