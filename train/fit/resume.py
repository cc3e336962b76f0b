"""What a training must have in common with the checkpoint it resumes or begins from."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from train.command import TrainError
from train.data.filters import EventTypes
from train.fit.training_log import TrainingLog
from train.network.checkpoint import Checkpoint
from train.network.hyperparameters import Hyperparameters
from train.network.model import Architecture

MAY_CHANGE = {"dropout_embedding", "dropout_hidden"}
"""What a warm start may change."""
OWN_START = "resume with the original one, and with the original --warm-start if there was one"


class FitError(TrainError):
    """One sentence on why a training cannot start or go on."""


def check_device(device: str) -> None:
    """Raise FitError if PyTorch finds no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise FitError("device=cuda, but PyTorch finds no such device: use cpu")


def check_warm_start(warm_start: Checkpoint, hyperparameters: Hyperparameters) -> None:
    """Raise FitError unless the checkpoint's weights fit a model of these."""
    for name in Architecture.model_fields.keys() - MAY_CHANGE:
        found, wanted = getattr(warm_start.info.model, name), getattr(hyperparameters, name)
        if found != wanted:
            raise FitError(
                f"{warm_start.folder} has {name}={found}, but this training has {wanted}: "
                "a warm start keeps the architecture"
            )


def check_hyperparameters(resume: Checkpoint, hyperparameters: Hyperparameters) -> None:
    """Raise FitError unless the checkpoint was trained with these."""
    wanted, found = hyperparameters.model_dump(), resume.info.hyperparameters
    for name in found.keys() - wanted.keys():
        raise FitError(
            f"{resume.folder} was trained with {name}={found[name]}, which this version no longer "
            "has: start from it with --warm-start"
        )
    _check_equal(resume, found, wanted, "resume with the original parameters")


def check_reading(resume: Checkpoint, event_types: EventTypes, idle_timeout_s: int | None) -> None:
    """Raise FitError unless the log is read as it was for the checkpoint."""
    wanted = {"event_types": event_types, "idle_timeout_s": idle_timeout_s}
    found = {name: getattr(resume.info, name) for name in wanted}
    _check_equal(resume, found, wanted, "resume with the original value")


def check_context(resume: Checkpoint, names: Sequence[str], utc_offset_s: int) -> None:
    """Raise FitError unless the checkpoint's context has these names and this offset."""
    fields = resume.info.model.context
    offsets = [field.utc_offset_s for field in fields if field.kind in ("hour", "weekday")]
    found = {"context": ",".join(field.name for field in fields) or "none"}
    wanted = {"context": ",".join(names) or "none", "utc_offset_s": utc_offset_s}
    _check_equal(resume, found | {"utc_offset_s": [*offsets, utc_offset_s][0]}, wanted, OWN_START)


def check_context_fields(before: Checkpoint, log: TrainingLog) -> None:
    """Raise FitError unless the checkpoint's context fields have the log's values."""
    if before.info.model.context != log.context:
        raise FitError(f"{before.folder} was trained with different context fields or values")


def check_same_run(
    resume: Checkpoint, log: TrainingLog, content_hash: str, hyperparameters: Hyperparameters
) -> None:
    """Raise FitError unless training on the log would continue the checkpoint's run."""
    check_hyperparameters(resume, hyperparameters)
    check_reading(resume, log.event_types, log.idle_timeout_s)
    check_context_fields(resume, log)
    logs = resume.info.training, log.description()
    if logs[0] != logs[1] or resume.catalogue.item_ids != log.catalogue.item_ids:
        found, given = (", ".join(f"{n} {v}" for n, v in of.model_dump().items()) for of in logs)
        raise FitError(
            f"{resume.folder} was trained on a different log ({found}), not on this one ({given}): "
            f"{OWN_START}"
        )
    if resume.info.content_hash != content_hash:
        raise FitError(
            f"{resume.folder} was trained or validated on different sessions: resume with the "
            "original log and the original validation"
        )


def _check_equal(
    resume: Checkpoint, found: Mapping[str, Any], wanted: Mapping[str, Any], advice: str
) -> None:
    for name, value in found.items():
        if value != wanted[name]:
            raise FitError(
                f"{resume.folder} was trained with {name}={value}, not {wanted[name]}: {advice}"
            )
