"""Settings of the commands on click logs, one class per command; its fields are the flags."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from train.baselines import Baseline
from train.data.clicks import Columns
from train.data.synthetic import ShopConfig
from train.fit.loop import Budget, Schedule
from train.fit.training_log import LogSettings
from train.network.hyperparameters import FineTuning, Hyperparameters, Learning
from train.network.model import Architecture
from train.network.presets import load_preset


class FitSettings(Architecture, Learning, Budget, LogSettings):
    """Train a session model from a click log; write its checkpoint, figures and a plot."""

    out: Path
    """Folder of the checkpoint, figures.json and training.png."""
    preset: str = "default"
    """Where values that are not given come from: rsc15-100k, diginetica, foursquare-nyc, or a JSON
    file of hyperparameters, such as best.json of a search. A file can also set patience (3), order
    (random), sample_alpha (0.5), bpreg (1), elu (0.5), momentum (0), initial_accumulator (0)."""
    resume: bool = False
    """Go on with the training in the folder."""
    warm_start: Path | None = None
    """Checkpoint to begin from instead of random weights: its items keep their indices, new ones
    come after them, and its context fields are kept."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to train the model."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = load_preset(given.get("preset", "default"))
        return {**{n: preset[n] for n in preset.keys() & cls.model_fields.keys()}, **given}

    @model_validator(mode="after")
    def _fits_together(self) -> "FitSettings":
        self.hyperparameters().check_context(self.context)
        return self

    def hyperparameters(self, chosen: Mapping[str, float] | None = None) -> Hyperparameters:
        """What determines the weights; `chosen` are values for settings that are not given."""
        own = Architecture.model_fields.keys() | Learning.model_fields.keys()
        preset = load_preset(self.preset)
        values = {name: preset[name] for name in preset.keys() & FineTuning.model_fields.keys()}
        values |= self.model_dump(include=set(own), exclude_unset=True)
        return Hyperparameters(**{**values, **self.not_given(chosen or {})})

    def not_given(self, values: Mapping[str, float]) -> dict[str, float]:
        """Those of the values whose setting neither a flag nor the preset gives."""
        given = set(self.model_fields_set)
        if self.optimiser != "adagrad":  # whose learning rate it is
            given.add("learning_rate")
        return {name: value for name, value in values.items() if name not in given}

    def schedule(self) -> Schedule:
        """What determines when training ends."""
        patience = load_preset(self.preset).get("patience", Schedule().patience)
        return Schedule(
            epochs=self.epochs, time_budget_s=self.time_budget_s, patience=cast(int, patience)
        )


class EvaluateSettings(BaseModel):
    """Measure a checkpoint on a click log; figures as JSON on stdout."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    checkpoint: Path
    """Folder that python -m train fit wrote."""
    clicks: str | Path
    """Click log to predict, newer than the training's; its sessions are cut as the training's."""
    columns: Columns = Columns()
    """How the logs name their columns."""
    train_clicks: str | Path | None = None
    """Log the checkpoint was trained on: baselines counted from it stand beside the model."""
    baselines: tuple[Baseline, ...] = ("pop", "s-pop", "markov")
    """Which ones."""
    out: Path | None = None
    """Folder to keep the evaluations in, one for each checkpoint, for python -m train report."""
    name: str = ""
    """What a report calls the log; unset: the file's name."""
    threads: PositiveInt = 1
    """Threads of PyTorch."""

    @model_validator(mode="after")
    def _baselines_have_a_log(self) -> "EvaluateSettings":
        if "baselines" in self.model_fields_set and self.train_clicks is None:
            raise ValueError(
                f"baselines={','.join(self.baselines)} without train_clicks, the log they count"
            )
        return self


class ShopSettings(ShopConfig):
    """Write the click log of a made-up shop; print how well it can be predicted at best."""

    out: Path
    """Click log to write: .parquet, .csv or .csv.gz."""
    clicks: int = Field(default=1_000_000, ge=1000)
    """Length of the log, at least 1,000: fewer leave too few sessions to measure the oracle on."""

    def config(self) -> ShopConfig:
        """The part that decides what the shop is."""
        return ShopConfig(**self.model_dump(include=set(ShopConfig.model_fields)))
