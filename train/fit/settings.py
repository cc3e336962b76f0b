"""What `python -m train` can be told: one class a command, its flags are its fields."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from train.baselines import Baseline
from train.data.clicks import Columns
from train.data.synthetic import SyntheticConfig
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


class ShopSettings(SyntheticConfig):
    """Write the click log of a made-up shop; print how well it can be predicted at best."""

    out: Path
    """Click log to write: .parquet, .csv or .csv.gz."""
    clicks: int = Field(default=1_000_000, ge=1000)
    """Length of the log, at least 1,000: fewer leave too few sessions to measure the oracle on."""

    def config(self) -> SyntheticConfig:
        """The part that decides what the shop is."""
        return SyntheticConfig(**self.model_dump(include=set(SyntheticConfig.model_fields)))
