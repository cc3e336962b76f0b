"""``python -m train fit``: a click log in, a checkpoint with its figures and plot out."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import torch

from train.baselines.named import build_baselines
from train.command import make_folder
from train.fit.loop import (
    FitError,
    check_context,
    check_hyperparameters,
    check_reading,
    check_warm_start,
    fit,
)
from train.fit.settings import FitSettings
from train.fit.training_log import TrainingLog, read_training_log
from train.measure.metrics import figures
from train.measure.predictor import MODEL
from train.measure.ranking import rank_targets
from train.network.checkpoint import INFO, Checkpoint, load_checkpoint
from train.progress import EpochProgress
from train.report.training import PLOT, plot_training, write_figures

SHOWN = ("recall_at_20", "mrr_at_20")

log = structlog.get_logger()


def run_fit(settings: FitSettings) -> None:
    """Read, train, and write the checkpoint with its figures and plot."""
    resume = load_checkpoint(settings.out) if settings.resume else None
    if resume is None:
        _check_free(settings.out)
    elif not resume.info.history:
        raise FitError(
            f"{settings.out} is an ensemble, which keeps no state of its training: --warm-start "
            "begins from it"
        )
    torch.set_num_threads(settings.threads)
    hyperparameters, schedule = settings.hyperparameters(), settings.schedule()
    if resume is not None:
        check_hyperparameters(resume, hyperparameters, schedule)
        check_reading(resume, settings.event_types, settings.idle_timeout_s)
    warm_start = None if settings.warm_start is None else load_checkpoint(settings.warm_start)
    if warm_start is not None:
        check_warm_start(warm_start, hyperparameters)
    elif resume is not None:
        check_context(resume, settings.context, settings.utc_offset_s)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise FitError("device=cuda, but PyTorch finds no such device here: use cpu")
    training_log = read_training_log(
        settings,
        known=None if warm_start is None else warm_start.catalogue,
        fields=None if warm_start is None else warm_start.info.model.context,
    )
    make_folder(settings.out)
    log.info("log_read", **training_log.description().model_dump())
    with _alone(settings.out):
        if resume is None:
            _check_free(settings.out)  # another run may have ended since
        _fit(settings, training_log, resume, warm_start)


def _fit(
    settings: FitSettings,
    training_log: TrainingLog,
    resume: Checkpoint | None,
    warm_start: Checkpoint | None,
) -> None:
    hyperparameters, schedule = settings.hyperparameters(), settings.schedule()
    baselines = build_baselines(training_log.train, len(training_log.catalogue))

    first_epoch = 1 if resume is None else min(len(resume.info.history) + 1, schedule.epochs)
    predictions = training_log.train.n_clicks - len(training_log.train)
    with EpochProgress(predictions, first_epoch, schedule.epochs) as progress:
        info = fit(
            training_log,
            hyperparameters,
            schedule,
            settings.out,
            resume=resume,
            warm_start=warm_start,
            watch=progress.watch(),
            device=settings.device,
        )
    validation = {MODEL: info.metrics}
    if training_log.validation is not None:
        for name, baseline in baselines.items():
            ranks = rank_targets(baseline, training_log.validation, len(training_log.catalogue))
            validation[name] = figures(ranks, training_log.lost)
    write_figures(settings.out, info, validation)
    plot_training(
        settings.out / PLOT,
        info.history,
        info.epoch,
        {name: validation[name] for name in baselines if name in validation},
    )
    for name, values in validation.items():
        shown = (f"{part}{metric}" for part in ("", "novel_") for metric in SHOWN)
        log.info("figures", model=name, **{n: round(values[n], 4) for n in shown if n in values})
    log.info("checkpoint_written", folder=str(settings.out), epoch=info.epoch)


def _check_free(folder: Path) -> None:
    if (folder / INFO).exists():
        raise FitError(
            f"{folder} holds a checkpoint: --resume goes on with it, another --out keeps it"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raise FitError where another run trains into the folder: each would delete the other's files.

    The lock is the folder's own, which no file outlives: it goes with the process.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FitError(
                f"another run trains into {folder}: another --out keeps them apart"
            ) from None
        except OSError as error:  # some network file systems lock no folders
            log.warning("folder_not_locked", folder=str(folder), error=error.strerror)
        yield
    finally:
        os.close(descriptor)
