"""The settings of `python -m train fit`: its flags are the fields."""

from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from train.fit.loop import Schedule
from train.fit.training_log import LogSettings
from train.network.hyperparameters import Hyperparameters
from train.network.presets import PRESETS

Preset = Literal["default", "rsc15-100k", "diginetica", "globo-5d", "foursquare-nyc"]


class FitSettings(Hyperparameters, Schedule, LogSettings):
    """Train a session model from a click log; its figures and a plot come beside the checkpoint."""

    out: Path
    """Folder of the checkpoint, figures.json and training.png."""
    preset: Preset = "default"
    """Where hyperparameters that are not given come from."""
    resume: bool = False
    """Go on with the training in the folder."""
    warm_start: Path | None = None
    """Checkpoint to begin from instead of random weights: its items keep their index, those that
    are new come behind, and its context fields are kept."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model is trained."""
    threads: PositiveInt = 1
    """Threads of PyTorch. Steps are small: a second thread gains little."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {**PRESETS.get(given.get("preset", "default"), {}), **given}

    @model_validator(mode="after")
    def _context_comes_in(self) -> "FitSettings":
        of_input = any(name != "gap" for name in self.context)
        for name, way, is_used in (
            ("input_context", self.input_context, of_input),
            ("transition_context", self.transition_context, "gap" in self.context),
        ):
            if way == "concat" and is_used and self.embedding == "one-hot":
                raise ValueError(
                    f"{name}=concat with embedding=one-hot, which has nothing to stand beside: "
                    "use multiply, or another embedding"
                )
            if way in ("matrices", "decay") and is_used and self.cell == "window":
                raise ValueError(
                    f"{name}={way} with cell=window, which is not recurrent: use concat, multiply "
                    "or add"
                )
        if self.peek_context and not self.context:
            raise ValueError("peek_context=true without context, which leaves nothing to peek at")
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs:g} with epochs={self.epochs}: "
                f"learning_rate={self.learning_rate:g} would never be reached"
            )
        return self

    def hyperparameters(self) -> Hyperparameters:
        """The part that decides the weights."""
        return Hyperparameters(**self.model_dump(include=set(Hyperparameters.model_fields)))

    def schedule(self) -> Schedule:
        """The part that decides when to stop."""
        return Schedule(**self.model_dump(include=set(Schedule.model_fields)))
