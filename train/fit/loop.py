"""Epoch after epoch, each measured on the validation sessions and kept in the checkpoint."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt

from train.baselines.support import item_support
from train.command import TrainError
from train.data.event_types import EventTypes
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
from train.network.model import ModelConfig
from train.network.trainer import Trainer

MAY_CHANGE = {"dropout_embedding", "dropout_hidden"}
"""What a warm start may set anew."""
MONITOR = "recall_at_20"
"""The validation figure that says which epoch was the best."""


class FitError(TrainError):
    """One sentence on why a training cannot start or go on."""


class Schedule(BaseModel):
    """When a training ends."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    epochs: PositiveInt = 10
    """Passes over the training sessions, at most."""
    patience: NonNegativeInt = 3
    """Stop after so many epochs without a better Recall@20 in the validation; 0 never does."""
    time_budget_s: PositiveFloat | None = None
    """Stop training after so many seconds, in the middle of an epoch too; the last validation
    comes on top. Such a run depends on the machine's speed."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told how a training goes; by default nobody."""

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
    """Train, and keep the best epoch's model in `folder` with what it takes to go on.

    With `resume`, a checkpoint of the same log and hyperparameters, epochs in its history are not
    repeated. With `warm_start` the weights begin as that checkpoint's, whose items are the first
    ones of the log's catalogue; so do the slots of an optimiser of the same rule. Raises FitError
    if either is of others, or if the loss is no number any more.
    """
    watch = watch or Watch()
    support, content_hash = item_support(log.train, len(log.catalogue)), log.content_hash()
    trainer = Trainer(
        hyperparameters, support, context=log.context, epochs=schedule.epochs, device=device
    )
    if warm_start is not None and resume is None:
        check_warm_start(warm_start, hyperparameters)
        _check_context(warm_start, log)
        state = weights_of(warm_start.model)
        if warm_start.info.hyperparameters["optimiser"] == hyperparameters.optimiser:
            # Another's slots mean something else: squares are sums to Adagrad, averages to Adam.
            state = warm_start.resume_arrays() | state
        trainer.warm_start(state)
    history: list[EpochRecord] = []
    best_weights: dict[str, np.ndarray] = {}
    if resume is not None:
        _check_same_run(resume, log, content_hash, hyperparameters, schedule)
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
                f"momentum={hyperparameters.momentum}: lower them"
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
            epochs=schedule.epochs,
            training=log.description(),
            idle_timeout_s=log.idle_timeout_s,
            event_types=log.event_types,
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
    """The first of the best epochs; the last one where nothing was measured."""
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


def check_warm_start(warm_start: Checkpoint, hyperparameters: Hyperparameters) -> None:
    """Raise FitError unless the weights of the checkpoint fit a model of these."""
    for field in fields(ModelConfig):
        if field.name in MAY_CHANGE or field.name not in Hyperparameters.model_fields:
            continue
        found = getattr(warm_start.info.model, field.name)
        wanted = getattr(hyperparameters, field.name)
        if found != wanted:
            raise FitError(
                f"{warm_start.folder} has {field.name}={found}, this training {wanted}: "
                "a warm start keeps the architecture"
            )


def check_hyperparameters(
    resume: Checkpoint, hyperparameters: Hyperparameters, schedule: Schedule
) -> None:
    """Raise FitError unless a run of these would go on as the checkpoint's began."""
    wanted = hyperparameters.model_dump()
    if hyperparameters.decay != "constant":  # its course follows from where it is to end
        wanted["epochs"] = schedule.epochs
    for name, value in {**resume.info.hyperparameters, "epochs": resume.info.epochs}.items():
        if name in wanted and wanted[name] != value:
            raise FitError(
                f"{resume.folder} was trained with {name}={value}, not {wanted[name]}: "
                "resume with its own parameters"
            )


def check_reading(resume: Checkpoint, event_types: EventTypes, idle_timeout_s: int | None) -> None:
    """Raise FitError unless the log is read as it was for the checkpoint."""
    for name, found, wanted in (
        ("event_types", resume.info.event_types, event_types),
        ("idle_timeout_s", resume.info.idle_timeout_s, idle_timeout_s),
    ):
        if found != wanted:
            raise FitError(
                f"{resume.folder} was trained with {name}={found}, not {wanted}: "
                "resume with its own"
            )


def check_context(resume: Checkpoint, names: Sequence[str], utc_offset_s: int) -> None:
    """Raise FitError unless the checkpoint's fields are of these names and this offset."""
    fields = resume.info.model.context
    found, wanted = (",".join(n) or "none" for n in ((f.name for f in fields), names))
    offsets = {field.utc_offset_s for field in fields if field.kind in ("hour", "weekday")}
    for name, was, now in (
        ("context", found, wanted),
        ("utc_offset_s", *(offsets or {utc_offset_s}), utc_offset_s),
    ):
        if was != now:
            raise FitError(
                f"{resume.folder} was trained with {name}={was}, not {now}: resume with its own, "
                "and with its --warm-start if it had one"
            )


def _check_context(before: Checkpoint, log: TrainingLog) -> None:
    if before.info.model.context != log.context:
        raise FitError(f"{before.folder} was trained with other context fields or values")


def _check_same_run(
    resume: Checkpoint,
    log: TrainingLog,
    content_hash: str,
    hyperparameters: Hyperparameters,
    schedule: Schedule,
) -> None:
    check_hyperparameters(resume, hyperparameters, schedule)
    check_reading(resume, log.event_types, log.idle_timeout_s)
    _check_context(resume, log)
    if resume.info.training != log.description() or (
        resume.catalogue.item_ids != log.catalogue.item_ids
    ):
        found = ", ".join(f"{n} {v}" for n, v in resume.info.training.model_dump().items())
        given = ", ".join(f"{n} {v}" for n, v in log.description().model_dump().items())
        raise FitError(
            f"{resume.folder} was trained on another log ({found}), not on ({given}): resume with "
            "its own, and with its --warm-start if it had one"
        )
    if resume.info.content_hash != content_hash:
        raise FitError(
            f"{resume.folder} was trained on other sessions, or validated on others: give the log "
            "and the validation it began with"
        )
