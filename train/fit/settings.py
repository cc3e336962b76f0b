"""The settings of `python -m train fit`, and those it shares with `search`: flags are fields."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from train.fit.loop import Schedule
from train.fit.training_log import LogSettings
from train.network.hyperparameters import Hyperparameters, Learning
from train.network.model import Architecture
from train.network.presets import load_preset, sizes_for
from train.pairs import from_pairs


class TrainingSettings(LogSettings):
    """The log, the preset and the device of one or many trainings."""

    preset: str = "default"
    """Where values that are not given come from: rsc15-100k, diginetica, foursquare-nyc, synthetic
    (the demo's shop), or a JSON file of hyperparameters, such as best.json of a search. A file can
    also set patience (3), order (time), sample_alpha (0.3), bpreg (1), elu (0.5), momentum (0.15)
    and initial_accumulator (0.001; 0 for pairwise losses)."""
    epochs: PositiveInt = 10
    """Passes over the training sessions, at most. Training ends earlier after three epochs without
    a better Recall@20 in the validation, unless the preset sets another patience."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to train."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = load_preset(given.get("preset", "default"), given.get("optimiser"))
        return {n: v for n, v in preset.items() if n in cls.model_fields} | given

    def combined(self, given: Mapping[str, Any], n_clicks: int | None = None) -> Hyperparameters:
        """The given values; else the preset's; else those for a log of so many clicks. Raises
        ValueError if they cannot be combined."""
        preset = load_preset(self.preset, given.get("optimiser"))
        own = {n: v for n, v in preset.items() if n in Hyperparameters.model_fields}
        values = {**own, **given}
        if n_clicks is not None:
            values = sizes_for(n_clicks, values.get("optimiser", "adagrad")) | values
        return from_pairs(Hyperparameters, values)

    def schedule(self) -> Schedule:
        """When a training ends."""
        patience = load_preset(self.preset).get("patience", Schedule().patience)
        return Schedule(epochs=self.epochs, patience=patience)


class FitSettings(Architecture, Learning, TrainingSettings):
    """Train a session model from a click log; write its checkpoint, figures and a plot."""

    out: Path
    """Folder of the checkpoint, figures.json and training.png."""
    resume: bool = False
    """Resume the training in the folder."""
    warm_start: Path | None = None
    """Checkpoint to begin from instead of random weights: its items keep their indices, new ones
    come after them, and its context fields are kept."""
    time_budget_s: PositiveFloat | None = None
    """Stop training after this many seconds, even within an epoch; the last validation, and the
    replay that live lists are fitted on, come on top. The result then depends on the speed of the
    machine."""

    @model_validator(mode="after")
    def _fits_together(self) -> "FitSettings":
        self.hyperparameters().check_context(self.context)
        return self

    def hyperparameters(self, sizes: Mapping[str, float] | None = None) -> Hyperparameters:
        """What determines the weights; `sizes` are values for settings that are not given."""
        own = Architecture.model_fields.keys() | Learning.model_fields.keys()
        given = self.model_dump(include=set(own), exclude_unset=True)
        return self.combined({**(sizes or {}), **given})

    def schedule(self) -> Schedule:
        """When the training ends."""
        return super().schedule().model_copy(update={"time_budget_s": self.time_budget_s})
