"""The epochs of a training, each measured on the validation sessions and kept on disk."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from train.baselines.popularity import item_support
from train.command import Settings
from train.fit.resume import FitError, check_context_fields, check_same_run, check_warm_start
from train.fit.training_log import TrainingLog
from train.measure.metrics import figures
from train.measure.predictor import ModelPredictor
from train.measure.ranking import PROTOCOL, rank_targets
from train.network.checkpoint import (
    Checkpoint,
    CheckpointInfo,
    EpochRecord,
    popular_items,
    save_checkpoint,
    weights_of,
)
from train.network.hyperparameters import Hyperparameters
from train.network.trainer import Trainer

MONITOR = "recall_at_20"
"""The validation figure by which the best epoch is chosen."""


class Schedule(Settings):
    """When a training ends."""

    epochs: PositiveInt = 10
    time_budget_s: PositiveFloat | None = None
    patience: NonNegativeInt = 3
    """Stop after this many epochs without a better Recall@20 in the validation; 0: never."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Callbacks on a training's progress; by default they do nothing."""

    on_step: Callable[[int, float], None] = lambda clicks, loss: None
    """Clicks and mean loss of a step."""
    on_epoch: Callable[[EpochRecord], None] = lambda record: None
    """After its validation, when its checkpoint is on disk."""


def fit(
    log: TrainingLog,
    hyperparameters: Hyperparameters,
    schedule: Schedule,
    folder: Path,
    *,
    resume: Checkpoint | None = None,
    warm_start: Checkpoint | None = None,
    watch: Watch | None = None,
    device: str = "cpu",
    clock: Callable[[], float] = time.monotonic,
) -> CheckpointInfo:
    """Train, and keep the best epoch's model in `folder` with everything a later run resumes from.

    With `resume`, a checkpoint of the same log and hyperparameters, the epochs in its history are
    not repeated. With `warm_start` the weights begin as that checkpoint's, whose items are the
    first of the log's catalogue; so do the optimiser's slots if its rule is the same. Raises
    FitError if either checkpoint does not match, or if the loss is no longer finite.
    """
    watch = watch or Watch()
    support, content_hash = item_support(log.train, len(log.catalogue)), log.content_hash()
    trainer = Trainer(hyperparameters, support, context=log.context, device=device)
    if warm_start is not None and resume is None:
        check_warm_start(warm_start, hyperparameters)
        check_context_fields(warm_start, log)
        state = weights_of(warm_start.model)
        if warm_start.info.hyperparameters["optimiser"] == hyperparameters.optimiser:
            # Another rule's slots mean something else: Adagrad sums squares, Adam averages them.
            state = warm_start.resume_arrays() | state
        trainer.warm_start(state)
    history: list[EpochRecord] = []
    best_weights: dict[str, np.ndarray] = {}
    if resume is not None:
        check_same_run(resume, log, content_hash, hyperparameters)
        history = list(resume.info.history)
        best_weights = weights_of(resume.model)
        trainer.load_state(str(resume.folder / resume.info.resume), resume.resume_arrays())

    begin = clock() - sum(record.seconds for record in history)
    deadline = math.inf if schedule.time_budget_s is None else begin + schedule.time_budget_s
    info = None if resume is None else resume.info
    while not _is_finished(history, schedule, out_of_time=clock() >= deadline):
        epoch, epoch_begin = len(history) + 1, clock()
        result = trainer.train_epoch(
            log.train, epoch, deadline=deadline, on_step=watch.on_step, clock=clock
        )
        if not math.isfinite(result.loss):
            raise FitError(
                f"the loss of epoch {epoch} is {result.loss}, not a finite number, with "
                f"learning_rate={hyperparameters.learning_rate} and "
                f"momentum={hyperparameters.momentum}: use lower values"
            )
        metrics = {}
        if log.validation is not None:
            predictor = ModelPredictor(trainer.model)
            ranks = rank_targets(predictor, log.validation, len(log.catalogue))
            metrics = figures(ranks, log.lost)
        history.append(
            EpochRecord(
                epoch=epoch,
                loss=result.loss,
                clicks_per_second=result.clicks / max(result.seconds, 1e-9),
                seconds=clock() - epoch_begin,
                metrics=metrics,
            )
        )
        best = _best(history)
        if best.epoch == epoch:
            best_weights = weights_of(trainer.model)
        info = CheckpointInfo(
            model=trainer.model.config,
            hyperparameters=hyperparameters.model_dump(),
            training=log.description(),
            idle_timeout_s=log.idle_timeout_s,
            allowed_lateness_s=log.allowed_lateness_s,
            event_types=log.event_types,
            max_session_length=log.max_session_length,
            health=log.health,
            content_hash=content_hash,
            epoch=best.epoch,
            protocol=PROTOCOL,
            metrics=best.metrics,
            history=history,
            finished=_is_finished(history, schedule, out_of_time=not result.complete),
            popular=popular_items(support),
            weights=f"weights-{best.epoch}.npz",
            resume=f"resume-{epoch}.npz",
        )
        save_checkpoint(folder, info, log.catalogue, best_weights, trainer.state())
        watch.on_epoch(history[-1])
    assert info is not None, "the first epoch always runs"
    return info


def _best(history: list[EpochRecord]) -> EpochRecord:
    """The first of the best epochs; the last one if nothing was measured."""
    if not history[-1].metrics:
        return history[-1]
    return max(history, key=lambda record: record.metrics[MONITOR])


def _is_finished(history: list[EpochRecord], schedule: Schedule, *, out_of_time: bool) -> bool:
    if not history:
        return False
    waited = len(history) - _best(history).epoch
    return (
        out_of_time
        or len(history) >= schedule.epochs
        or (schedule.patience > 0 and waited >= schedule.patience)
    )
