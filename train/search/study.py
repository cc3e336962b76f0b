"""The trials of a search on disk: a SQLite file from which a killed search resumes.

What is drawn next follows from the seed and the trials that ended before, so a resumed search draws
what an uninterrupted one would.
"""

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import structlog
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from train.command import TrainError
from train.fit.training_log import TrainingLog
from train.folders import locked
from train.search.settings import SearchSettings
from train.search.space import Space

STUDY = "study.db"
MADE_WITH = "made with"
KILLS = 3
"""A trial during which the process was killed this often (out of memory, say) is given up."""

log = structlog.get_logger()


@contextmanager
def open_study(settings: SearchSettings) -> Iterator[Study]:
    """The study in the settings' folder, new or resumed, locked against other processes. Raises
    TrainError if another process has it, or if the file is something else."""
    file = settings.study / STUDY
    busy = f"{settings.study} is in use by another search: choose another --study"
    with locked(settings.study, busy):
        warmup = max(1, settings.epochs // 3)
        pruner = (
            optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=warmup)
            if settings.prune
            else optuna.pruners.NopPruner()
        )
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{file.resolve()}")
            study = optuna.create_study(
                storage=storage,
                study_name="search",
                direction="maximize",
                load_if_exists=True,
                pruner=pruner,
            )
        except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise TrainError(f"{file} cannot be read as an Optuna study: {reason}") from error
        try:
            yield study
        finally:
            storage.remove_session()
            storage.engine.dispose()


def made_with(settings: SearchSettings, space: Space) -> dict[str, Any]:
    """What must stay the same for trials to be comparable, except the log."""
    names = ("metric", "seeds", "epochs")
    made_with = {name: getattr(settings, name) for name in names} | dict(space.fixed)
    made_with["patience"] = settings.schedule().patience
    for parameter in {dimension.parameter: None for dimension in space.dimensions}:
        drawn = [d for d in space.dimensions if d.parameter == parameter]
        made_with[parameter] = "drawn: " + "; ".join(str(d).partition(" ")[2] for d in drawn)
    return made_with


def log_fingerprint(training_log: TrainingLog) -> str:
    """Identifies the content of a log, wherever it is stored."""
    figures = training_log.description().model_dump()
    described = ", ".join(f"{name} {value}" for name, value in figures.items())
    return f"{described}, content {training_log.content_hash()}"


def check_same(settings: SearchSettings, study: Study, wanted: Mapping[str, Any]) -> None:
    """Raise TrainError if the study's trials were made with anything else."""
    if not study.get_trials(deepcopy=False):
        return
    found = study.user_attrs.get(MADE_WITH, {})
    for name, value in wanted.items():
        if found.get(name) != value:
            raise TrainError(
                f"{settings.study / STUDY} was created with {name}={found.get(name)}, not {value}: "
                "choose another --study"
            )


def ended(study: Study) -> list[FrozenTrial]:
    """The trials that count: finished or pruned, not killed."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def trial_folder(settings: SearchSettings, number: int) -> Path:
    """Folder of a trial's checkpoints."""
    return settings.study / f"trial-{number}"


def take_up_killed(settings: SearchSettings, study: Study) -> None:
    """Queue again the trials that a kill ended, or give them up."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        kills = trial.user_attrs.get("kills", 0) + 1
        shutil.rmtree(trial_folder(settings, trial.number), ignore_errors=True)
        log.warning("trial_was_killed", trial=trial.number, kills=kills)
        if kills < KILLS:
            study.enqueue_trial(trial.params, user_attrs={"kills": kills})
            study.tell(trial.number, state=TrialState.FAIL)
        else:  # counted as a bad trial, so that it is not drawn again
            study.tell(trial.number, state=TrialState.PRUNED)


def sampler(seed: int, n_ended: int) -> optuna.samplers.BaseSampler:
    """Its draws follow from the seed and the earlier trials, however often a search was killed."""
    (state,) = np.random.SeedSequence([seed, n_ended]).generate_state(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # group: parameters that only some trials draw are still modelled jointly with the others.
        return optuna.samplers.TPESampler(seed=int(state), group=True)
