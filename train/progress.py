"""A training's progress in a terminal."""

import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from train.fit.loop import MONITOR, Watch
from train.network.checkpoint import EpochRecord

log = structlog.get_logger()

_SMOOTHING = 0.98  # of the loss shown: about the mean of the last 50 steps


class EpochProgress(Progress):
    """A bar for the current epoch with loss and clicks/s, and a log line for every finished one.
    Outside a terminal it writes the log lines only."""

    def __init__(self, clicks_per_epoch: int, first_epoch: int, n_epochs: int) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[rate]:,.0f} clicks/s"),
            TimeElapsedColumn(),
            console=(console := Console(stderr=True)),
            disable=not console.is_terminal,
        )
        self._n_epochs = n_epochs
        self._loss: float | None = None
        self._task = self.add_task(
            self._title(first_epoch), total=clicks_per_epoch, loss=0.0, rate=0.0
        )

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch}/{self._n_epochs}"

    def watch(self) -> Watch:
        """The callbacks for `fit`."""
        return Watch(on_step=self._on_step, on_epoch=self._on_epoch)

    def _on_step(self, clicks: int, loss: float) -> None:
        last = loss if self._loss is None else self._loss
        self._loss = _SMOOTHING * last + (1 - _SMOOTHING) * loss
        rate = self.tasks[0].speed or 0.0
        self.update(self._task, advance=clicks, loss=self._loss, rate=rate)

    def _on_epoch(self, record: EpochRecord) -> None:
        self._loss = None
        shown = [name for name in (MONITOR, "mrr_at_20") if name in record.metrics]
        log.info(
            "epoch_done",
            epoch=record.epoch,
            loss=round(record.loss, 4),
            clicks_per_second=round(record.clicks_per_second),
            seconds=round(record.seconds, 1),
            **{name: round(record.metrics[name], 4) for name in shown},
        )
        self.reset(self._task, description=self._title(min(record.epoch + 1, self._n_epochs)))
