"""Trial after trial, each a fit of the same log, and what is said of the best one."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import structlog
import torch
from optuna.study import Study
from optuna.trial import Trial, TrialState

from train.fit.loop import FitError, Watch, fit
from train.fit.settings import FitSettings
from train.fit.training_log import TrainingLog, read_training_log
from train.network.checkpoint import CheckpointInfo, EpochRecord
from train.network.hyperparameters import Hyperparameters
from train.network.presets import PRESETS
from train.progress import EpochProgress
from train.search.plot import plot_search
from train.search.settings import SearchSettings
from train.search.space import Space
from train.search.study import (
    MADE_WITH,
    SearchError,
    check_same,
    ended,
    log_fingerprint,
    made_with,
    open_study,
    sampler,
    take_up_killed,
    trial_folder,
)

BEST = "best.json"
PLOT = "search.png"
PRESET, RESULT = "preset", "result"
SHOWN = ("recall_at_20", "mrr_at_20", "ndcg_at_20")

log = structlog.get_logger()


def run_search(settings: SearchSettings) -> None:
    """Search until the study has its trials or the time is over; print the best one.

    Raises SearchError for a study of something else, or one without a trial that came to an end.
    """
    torch.set_num_threads(settings.threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = settings.search_space()
    wanted = made_with(settings, space)
    with open_study(settings) as study:  # refused before the log is read, if it is to be
        check_same(settings, study, wanted)
    training_log = read_training_log(settings)
    log.info("log_read", **training_log.description().model_dump())
    wanted["log"] = log_fingerprint(training_log)
    begin = time.monotonic()
    with open_study(settings) as study:
        check_same(settings, study, wanted)
        if not study.get_trials(deepcopy=False):
            study.set_user_attr(MADE_WITH, wanted)
            study.enqueue_trial(space.nearest(_start(settings)))
        take_up_killed(settings, study)
        while len(ended(study)) < settings.trials:
            if settings.time_budget_s and time.monotonic() - begin >= settings.time_budget_s:
                break
            _run_trial(settings, space, training_log, study)
        best = best_of(settings, study)
        (settings.study / BEST).write_text(json.dumps(best, indent=1) + "\n", encoding="utf-8")
        plot_search(settings.study / PLOT, study, settings.metric)
    print(in_words(settings, best))


def _start(settings: SearchSettings) -> dict[str, Any]:
    """The preset, whether or not it goes with what is given."""
    defaults = {name: field.default for name, field in Hyperparameters.model_fields.items()}
    return {**defaults, **PRESETS.get(settings.preset, {})}


def _run_trial(
    settings: SearchSettings, space: Space, training_log: TrainingLog, study: Study
) -> None:
    """One more trial of the study, to its end or until it is pruned."""
    study.sampler = sampler(settings.seed, len(ended(study)))
    trial, begin = study.ask(), time.monotonic()
    fit_settings = settings.fit_settings(space.draw(trial))
    preset = _preset_entry(fit_settings)
    trial.set_user_attr(PRESET, preset)
    log.info("trial_begins", trial=trial.number, **preset)
    folder = trial_folder(settings, trial.number)
    values: list[float] | None = None
    try:
        infos = _train(settings, fit_settings, training_log, trial, folder)
    except optuna.TrialPruned:
        frozen = study.tell(trial, state=TrialState.PRUNED)
    except FitError as error:  # its loss is no number any more
        log.warning("trial_failed", trial=trial.number, reason=str(error))
        frozen = study.tell(trial, state=TrialState.PRUNED)
    else:
        values = [info.metrics[settings.metric] for info in infos]
        figures = {name: float(np.mean([info.metrics[name] for info in infos])) for name in SHOWN}
        epochs = [info.epoch for info in infos]
        trial.set_user_attr(RESULT, {"values": values, **figures, "epochs": epochs})
        frozen = study.tell(trial, float(np.mean(values)))
    if not settings.keep_checkpoints:
        shutil.rmtree(folder, ignore_errors=True)
    log.info(
        "trial_done",
        trial=trial.number,
        state=frozen.state.name.lower(),
        value=None if values is None else round(float(np.mean(values)), 4),
        seconds=round(time.monotonic() - begin, 1),
    )


def _train(
    settings: SearchSettings,
    fit_settings: FitSettings,
    training_log: TrainingLog,
    trial: Trial,
    folder: Path,
) -> list[CheckpointInfo]:
    """Train once a seed. Raises TrialPruned in the first training, if it lags."""
    predictions = training_log.train.n_clicks - len(training_log.train)
    infos: list[CheckpointInfo] = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        with EpochProgress(predictions, 1, settings.epochs) as progress:
            shown = progress.watch()

            def on_epoch(record: EpochRecord, shown: Watch = shown) -> None:
                shown.on_epoch(record)
                if not infos:
                    trial.report(record.metrics[settings.metric], record.epoch)
                    if record.epoch < settings.epochs and trial.should_prune():
                        raise optuna.TrialPruned

            infos.append(
                fit(
                    training_log,
                    fit_settings.hyperparameters().model_copy(update={"seed": seed}),
                    fit_settings.schedule(),
                    folder / f"seed-{seed}",
                    watch=Watch(shown.on_step, on_epoch),
                    device=settings.device,
                )
            )
    return infos


def _preset_entry(fit_settings: FitSettings) -> dict[str, Any]:
    """What a preset would say of a fit: all that is not the default, as JSON has it."""
    names = (*Hyperparameters.model_fields, "epochs", "patience", "context", "utc_offset_s")
    values = fit_settings.model_dump(include=set(names) - {"seed"})
    defaults = {name: FitSettings.model_fields[name].default for name in values}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value != defaults[name]
    }


def flags_of(preset: Mapping[str, Any]) -> str:
    """The same as flags of `python -m train fit`."""
    words = []
    for name, value in preset.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            words.append(f"--{flag} {','.join(value)}")
        else:
            words.append(f"--{flag} {value}")
    return " ".join(words)


def best_of(settings: SearchSettings, study: Study) -> dict[str, Any]:
    """What best.json says. Raises SearchError where no trial came to an end."""
    all_ended = ended(study)
    finished = [trial for trial in all_ended if trial.state == TrialState.COMPLETE]
    if not finished:
        raise SearchError(
            f"{settings.study}: none of {len(all_ended)} trials came to an end with a finite loss"
        )
    best = max(finished, key=lambda trial: trial.values[0])
    preset: dict[str, Any] = best.user_attrs[PRESET]
    return {
        "metric": settings.metric,
        "value": best.value,
        **best.user_attrs[RESULT],
        "trial": best.number,
        "trials": len(all_ended),
        "pruned": len(all_ended) - len(finished),
        "flags": flags_of(preset),
        "preset": preset,
    }


def in_words(settings: SearchSettings, best: Mapping[str, Any]) -> str:
    """The best trial as flags, and as an entry of train/network/presets.py."""
    name = settings.study.resolve().name if settings.preset == "default" else settings.preset
    entry = "".join(
        f'        "{key}": {_literal(value)},\n' for key, value in best["preset"].items()
    )
    return (
        f"# trial {best['trial']} of {best['trials']}: {settings.metric} {best['value']:.4f}\n"
        f"{best['flags']}\n"
        f'    "{name}": {{\n{entry}    }},'
    )


def _literal(value: Any) -> str:
    return repr(value) if isinstance(value, bool) else json.dumps(value)
