"""What `python -m train` can be told: one class a command, its flags are its fields."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from train.clicks import Columns, Filters
from train.fit import Schedule
from train.hyperparameters import Hyperparameters
from train.presets import PRESETS
from train.shop import ShopConfig


class FitSettings(Hyperparameters, Schedule):
    """Train a session model from a click log; its figures and a plot come beside the checkpoint."""

    clicks: Path
    """Click log: .parquet, .csv or .tsv, text also .gz."""
    out: Path
    """Folder of the checkpoint, figures.json and training.png."""
    columns: Columns = Columns()
    """How the log names its columns."""
    idle_timeout_s: PositiveInt | None = None
    """Cut sessions at longer gaps; kept for serving, which then expires sessions alike. Unset: the
    log's session column says it all."""
    filters: Filters = Filters()
    """Which clicks are worth learning from."""
    validation: Path | None = None
    """Click log to validate on; unset: the newest sessions of the log are held back for it."""
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the log's sessions held back, the newest; 0: train on all and validate nothing."""
    preset: Literal["default", "rsc15-100k"] = "default"
    """Where hyperparameters that are not given come from."""
    resume: bool = False
    """Go on with the training in the folder."""
    threads: PositiveInt = 1
    """Threads of PyTorch. Steps are small: a second thread gains little."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {**PRESETS.get(given.get("preset", "default"), {}), **given}

    def hyperparameters(self) -> Hyperparameters:
        """The part that decides the weights."""
        return Hyperparameters(**self.model_dump(include=set(Hyperparameters.model_fields)))

    def schedule(self) -> Schedule:
        """The part that decides when to stop."""
        return Schedule(**self.model_dump(include=set(Schedule.model_fields)))


class EvaluateSettings(BaseModel):
    """Measure a checkpoint on a click log; figures as JSON on stdout."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    checkpoint: Path
    """Folder that python -m train fit wrote."""
    clicks: Path
    """Click log to predict, newer than the training's; its sessions are cut as the training's."""
    columns: Columns = Columns()
    """How the logs name their columns."""
    train_clicks: Path | None = None
    """Log the checkpoint was trained on: baselines counted from it stand beside the model."""
    threads: PositiveInt = 1
    """Threads of PyTorch."""


class ShopSettings(ShopConfig):
    """Write the click log of a made-up shop; print how well it can be predicted at best."""

    out: Path
    """Click log to write: .parquet, .csv or .csv.gz."""
    clicks: PositiveInt = 1_000_000
    """Length of the log."""

    def config(self) -> ShopConfig:
        """The part that decides what the shop is."""
        return ShopConfig(**self.model_dump(include=set(ShopConfig.model_fields)))
