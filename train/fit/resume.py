"""What a training must have in common with the checkpoint it resumes or begins from."""

from collections.abc import Sequence
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
    for name, value in found.items():
        _check_equal(resume, name, value, wanted[name], "resume with the original parameters")


def check_reading(resume: Checkpoint, event_types: EventTypes, idle_timeout_s: int | None) -> None:
    """Raise FitError unless the log is read as it was for the checkpoint."""
    info, advice = resume.info, "resume with the original value"
    _check_equal(resume, "event_types", info.event_types, event_types, advice)
    _check_equal(resume, "idle_timeout_s", info.idle_timeout_s, idle_timeout_s, advice)


def check_context(resume: Checkpoint, names: Sequence[str], utc_offset_s: int) -> None:
    """Raise FitError unless the checkpoint's context has these names and this offset."""
    fields = resume.info.model.context
    found, wanted = (",".join(n) or "none" for n in ((f.name for f in fields), names))
    offsets = [field.utc_offset_s for field in fields if field.kind in ("hour", "weekday")]
    _check_equal(resume, "context", found, wanted, OWN_START)
    offset = offsets[0] if offsets else utc_offset_s
    _check_equal(resume, "utc_offset_s", offset, utc_offset_s, OWN_START)


def check_context_fields(before: Checkpoint, log: TrainingLog) -> None:
    """Raise FitError unless the checkpoint's context fields have the log's values."""
    if before.info.model.context != log.context:
        raise FitError(f"{before.folder} was trained with other context fields or values")


def check_same_run(
    resume: Checkpoint, log: TrainingLog, content_hash: str, hyperparameters: Hyperparameters
) -> None:
    """Raise FitError unless training on the log would continue the checkpoint's run."""
    check_hyperparameters(resume, hyperparameters)
    check_reading(resume, log.event_types, log.idle_timeout_s)
    check_context_fields(resume, log)
    if resume.info.training != log.description() or (
        resume.catalogue.item_ids != log.catalogue.item_ids
    ):
        found = ", ".join(f"{n} {v}" for n, v in resume.info.training.model_dump().items())
        given = ", ".join(f"{n} {v}" for n, v in log.description().model_dump().items())
        raise FitError(
            f"{resume.folder} was trained on another log ({found}), not on ({given}): {OWN_START}"
        )
    if resume.info.content_hash != content_hash:
        raise FitError(
            f"{resume.folder} was trained or validated on other sessions: resume with the log and "
            "the validation it began with"
        )


def _check_equal(resume: Checkpoint, name: str, found: Any, wanted: Any, advice: str) -> None:
    if found != wanted:
        raise FitError(f"{resume.folder} was trained with {name}={found}, not {wanted}: {advice}")
