"""The trials of a search, each a training on the same log, and the report on the best one."""

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

from train.command import TrainError
from train.fit.loop import Watch, fit
from train.fit.resume import FitError, check_device
from train.fit.training_log import TrainingLog, read_training_log
from train.network.checkpoint import CheckpointInfo, EpochRecord
from train.network.hyperparameters import Hyperparameters
from train.progress import EpochProgress
from train.search.plot import plot_search
from train.search.settings import SearchSettings
from train.search.space import Space
from train.search.study import (
    MADE_WITH,
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
    """Search until the study has its trials or the time is up; print the best one. Raises
    TrainError if the study was made with other settings, or if none of its trials finished."""
    torch.set_num_threads(1)
    check_device(settings.device)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = settings.search_space()
    wanted = made_with(settings, space)
    with open_study(settings) as study:  # refused, if at all, before the log is read
        check_same(settings, study, wanted)
    training_log = read_training_log(settings)
    log.info("log_read", **training_log.description().model_dump())
    wanted["log"] = log_fingerprint(training_log)
    begin, n_clicks = time.monotonic(), training_log.train.n_clicks
    with open_study(settings) as study:
        check_same(settings, study, wanted)
        if not study.get_trials(deepcopy=False):
            study.set_user_attr(MADE_WITH, wanted)
            study.enqueue_trial(space.nearest(settings.hyperparameters({}, n_clicks).model_dump()))
        take_up_killed(settings, study)
        while len(ended(study)) < settings.trials:
            if settings.time_budget_s and time.monotonic() - begin >= settings.time_budget_s:
                break
            _run_trial(settings, space, training_log, study)
        best = best_of(settings, study)
        (settings.study / BEST).write_text(json.dumps(best, indent=1) + "\n", encoding="utf-8")
        plot_search(settings.study / PLOT, study, settings.metric)
    print(in_words(settings, best))


def _run_trial(
    settings: SearchSettings, space: Space, training_log: TrainingLog, study: Study
) -> None:
    """Run one more trial, to its end or until it is pruned."""
    study.sampler = sampler(settings.seed, len(ended(study)))
    trial, begin = study.ask(), time.monotonic()
    drawn = space.draw(trial)
    hyperparameters = settings.hyperparameters(drawn, training_log.train.n_clicks)
    preset = _preset_entry(settings, hyperparameters)
    trial.set_user_attr(PRESET, preset)
    log.info("trial_begins", trial=trial.number, **drawn)
    folder = trial_folder(settings, trial.number)
    value: float | None = None
    try:
        infos = _train(settings, hyperparameters, training_log, trial, folder)
    except optuna.TrialPruned:
        frozen = study.tell(trial, state=TrialState.PRUNED)
    except FitError as error:  # its loss is no longer finite
        log.warning("trial_failed", trial=trial.number, reason=str(error))
        frozen = study.tell(trial, state=TrialState.PRUNED)
    else:
        values = [info.metrics[settings.metric] for info in infos]
        value = float(np.mean(values))
        figures = {name: float(np.mean([info.metrics[name] for info in infos])) for name in SHOWN}
        epochs = [info.epoch for info in infos]
        trial.set_user_attr(RESULT, {"values": values, **figures, "epochs": epochs})
        frozen = study.tell(trial, value)
    if not settings.keep_checkpoints:
        shutil.rmtree(folder, ignore_errors=True)
    log.info(
        "trial_done",
        trial=trial.number,
        state=frozen.state.name.lower(),
        value=None if value is None else round(value, 4),
        seconds=round(time.monotonic() - begin, 1),
    )


def _train(
    settings: SearchSettings,
    hyperparameters: Hyperparameters,
    training_log: TrainingLog,
    trial: Trial,
    folder: Path,
) -> list[CheckpointInfo]:
    """Train once per seed. Raises TrialPruned if the first training falls behind."""
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
                    hyperparameters.model_copy(update={"seed": seed}),
                    settings.schedule(),
                    folder / f"seed-{seed}",
                    watch=Watch(shown.on_step, on_epoch),
                    device=settings.device,
                )
            )
    return infos


def _preset_entry(settings: SearchSettings, hyperparameters: Hyperparameters) -> dict[str, Any]:
    """The trial as a preset that does not depend on defaults."""
    entry = hyperparameters.model_dump(exclude={"seed"})
    entry |= settings.schedule().model_dump(exclude_none=True)
    if settings.context:
        entry |= {"context": list(settings.context), "utc_offset_s": settings.utc_offset_s}
    return entry


def best_of(settings: SearchSettings, study: Study) -> dict[str, Any]:
    """The content of best.json. Raises TrainError if no trial finished."""
    all_ended = ended(study)
    finished = [trial for trial in all_ended if trial.state == TrialState.COMPLETE]
    if not finished:
        raise TrainError(
            f"{settings.study}: none of {len(all_ended)} trials finished with a finite loss"
        )
    best = max(finished, key=lambda trial: trial.values[0])
    return {
        "metric": settings.metric,
        "value": best.value,
        **best.user_attrs[RESULT],
        "trial": best.number,
        "trials": len(all_ended),
        "pruned": len(all_ended) - len(finished),
        "preset": best.user_attrs[PRESET],
    }


def in_words(settings: SearchSettings, best: Mapping[str, Any]) -> str:
    """The best trial, how to train with it, and its entry for train/network/presets.toml."""
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in best["preset"].items())
    return (
        f"# trial {best['trial']} of {best['trials']}: {settings.metric} {best['value']:.4f}\n"
        f"python -m train fit --preset {settings.study / BEST} ...\n"
        f"[{json.dumps(settings.study.resolve().name)}]\n{lines}"
    )
