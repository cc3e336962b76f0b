"""The settings of `python -m train fit`: its flags are the fields."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import model_validator

from train.fit.loop import Budget, Schedule
from train.fit.training_log import LogSettings
from train.network.hyperparameters import FineTuning, Hyperparameters, Learning
from train.network.model import Architecture
from train.network.presets import fill_from_preset, load_preset


class FitSettings(Architecture, Learning, Budget, LogSettings):
    """Train a session model from a click log; write its checkpoint, figures and a plot."""

    out: Path
    """Folder of the checkpoint, figures.json and training.png."""
    preset: str = "default"
    """Where values that are not given come from: rsc15-100k, diginetica, foursquare-nyc, synthetic
    (the demo's shop), or a JSON file of hyperparameters, such as best.json of a search. A file can
    also set patience (3), order (time), sample_alpha (0.3), bpreg (1), elu (0.5), momentum (0.15)
    and initial_accumulator (0.001; 0 for pairwise losses)."""
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
        return fill_from_preset(cls, given)

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
