"""What the benchmarks of models share: a training, and figures as they are kept.

A training counts the process's own seconds, without those in which it waited for a core.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from train.fit.loop import Schedule, fit
from train.fit.training_log import TrainingLog
from train.measure.ranking import Ranks
from train.measure.significance import compare, estimate
from train.network.checkpoint import Checkpoint, load_checkpoint
from train.network.hyperparameters import Hyperparameters
from train.progress import EpochProgress

SHOWN = ("recall_at_20", "mrr_at_20")
"""What tables and log lines show."""


def trained(
    log: TrainingLog,
    hyperparameters: Hyperparameters,
    schedule: Schedule,
    folder: Path | None = None,
    *,
    resume: Checkpoint | None = None,
) -> Checkpoint:
    """The best epoch's checkpoint; with a folder it stays there, and the training is shown."""
    start = partial(fit, log, hyperparameters, schedule, clock=time.process_time)
    if folder is None:
        with tempfile.TemporaryDirectory() as name:
            start(Path(name))
            return load_checkpoint(Path(name))
    with EpochProgress(log.train.n_clicks - len(log.train), 1, schedule.epochs) as bar:
        start(folder, resume=resume, watch=bar.watch())
    return load_checkpoint(folder)


def with_intervals(ranks: Ranks) -> dict[str, Any]:
    """The shown metrics with their intervals, and how many predictions they are over."""
    result: dict[str, Any] = {"predictions": len(ranks)}
    for name, found in estimate(ranks, SHOWN)[0].figures.items():
        result[name] = round(found.value, 4)
        result[f"{name}_interval"] = [round(found.low, 4), round(found.high, 4)]
    return result


def differences(a: Ranks, b: Ranks) -> dict[str, Any]:
    """`a` less `b` in the shown metrics, by a paired test."""
    return {metric: compare(a, b, metric)._asdict() for metric in SHOWN}
