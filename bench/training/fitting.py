"""What the training benchmarks share: a training that shows its progress, and made-up sessions."""

from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int64

from train.data.sessions import Sessions
from train.fit.loop import Schedule, fit
from train.fit.training_log import TrainingLog
from train.network.checkpoint import Checkpoint, load_checkpoint
from train.network.hyperparameters import Hyperparameters
from train.progress import EpochProgress


def fit_shown(
    log: TrainingLog,
    hyperparameters: Hyperparameters,
    schedule: Schedule,
    folder: Path,
    resume: Checkpoint | None = None,
) -> Checkpoint:
    """Train with a progress bar; the best epoch's checkpoint, which is in `folder`."""
    with EpochProgress(log.train.n_clicks - len(log.train), 1, schedule.epochs) as progress:
        fit(log, hyperparameters, schedule, folder, resume=resume, watch=progress.watch())
    return load_checkpoint(folder)


def made_up_sessions(
    item_index: Int64[np.ndarray, "T"], lengths: Int64[np.ndarray, "S"]
) -> Sessions:
    """Sessions of these lengths, one after the other, without context."""
    return Sessions(
        item_index=item_index,
        timestamp_ms=np.arange(len(item_index)),
        start=np.concatenate([[0], np.cumsum(lengths)]),
        session_id=pl.Series(np.arange(len(lengths))).cast(pl.String),
        context=np.zeros((len(item_index), 0), dtype=np.int32),
        target_weight=np.ones(len(item_index), dtype=np.float32),
    )
