"""What a search can be told: what stays as it is, what is drawn, and what a trial is worth."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from train.fit.settings import FitSettings, Preset
from train.fit.training_log import LogSettings
from train.measure.metrics import METRICS
from train.network.hyperparameters import Hyperparameters
from train.network.presets import PRESETS
from train.search.space import PARAMETERS, SPACE, Space, space_of


class SearchSettings(Hyperparameters, LogSettings):
    """Search hyperparameters for a click log: those given stay fixed, others are drawn.

    The first trial is the preset. Figures are of the validation sessions.
    """

    study: Path
    """Folder of study.db, best.json and search.png; a search goes on where the folder's ended."""
    preset: Preset = "default"
    """Where hyperparameters come from that are neither given nor drawn, and the first trial."""
    space: tuple[str, ...] = Field(
        default=(),
        description="Hyperparameters to draw; unset: all of the space that are not given, which is "
        "more than 50 trials can tell apart. The space: "
        + "; ".join(str(dimension) for dimension in SPACE)
        + ".",
    )
    trials: PositiveInt = 50
    """Trials of the study, those of earlier runs included."""
    time_budget_s: PositiveFloat | None = None
    """Begin no trial after so many seconds."""
    metric: str = "ndcg_at_20"
    """Validation figure to raise: recall, mrr or ndcg at 1, 5, 10 or 20. NDCG pays for the hit as
    Recall does and for its place as MRR does; Recall alone buys hits at the end of the list with a
    high dropout, MRR alone gives them up."""
    seeds: PositiveInt = 1
    """Trainings of a trial, of seed, seed + 1, ...; its value is their mean."""
    seed: NonNegativeInt = 1
    """Of the draws, and of a trial's first training."""
    epochs: PositiveInt = 10
    """Passes over the training sessions, at most."""
    patience: NonNegativeInt = 3
    """End a training after so many epochs without a better Recall@20; 0 never does."""
    prune: bool = True
    """End a trial whose first training, a third of its epochs on, is below the median of those
    that were finished."""
    keep_checkpoints: bool = False
    """Keep every trial's checkpoints in the folder, not only its figures."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where models are trained."""
    threads: PositiveInt = 1
    """Threads of PyTorch."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = PRESETS.get(given.get("preset", "default"), {})
        # Hyperparameters of a preset are not given: they may be drawn.
        other = preset.keys() & cls.model_fields.keys() - Hyperparameters.model_fields.keys()
        return {**{name: preset[name] for name in other}, **given}

    @model_validator(mode="after")
    def _can_be_searched(self) -> "SearchSettings":
        given = self.model_fields_set & set(PARAMETERS)
        if self.metric not in METRICS:
            raise ValueError(f"metric={self.metric} is not one of {', '.join(METRICS)}")
        if self.validation is None and self.validation_fraction == 0:
            raise ValueError("validation_fraction=0 without validation: nothing to compare by")
        for name in self.space:
            if name not in PARAMETERS:
                raise ValueError(f"space={name} is not one of {', '.join(PARAMETERS)}")
            if name in given:
                raise ValueError(
                    f"space={name} and {name}={getattr(self, name)}: it is drawn or it is fixed"
                )
        try:
            space = self.search_space()
        except ValidationError as error:  # of the fit that a trial would be
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(message) from error
        never = space.never_drawn()
        for name in set(self.space) & never.keys():
            needed = never[name].parameter
            raise ValueError(f"space={name} means nothing with {needed}={space.fixed[needed]}")
        if not space.dimensions:
            raise ValueError("every hyperparameter of the space is given: nothing to draw")
        return self

    def search_space(self) -> Space:
        """What a trial draws, and what stays as it is."""
        given = self.model_fields_set
        names = self.space or tuple(name for name in PARAMETERS if name not in given)
        defaults = {name: Hyperparameters.model_fields[name].default for name in names}
        hyperparameters = self.fit_settings(defaults).hyperparameters().model_dump()
        fixed = {name: value for name, value in hyperparameters.items() if name not in names}
        surround, gap = any(name != "gap" for name in self.context), "gap" in self.context
        fixed["context"] = {
            (False, False): "none",
            (True, False): "input",
            (False, True): "gap",
            (True, True): "both",
        }[surround, gap]

        def fits(name: str, value: Any) -> bool:
            try:
                self.fit_settings({**defaults, name: value})
            except ValidationError:
                return False
            return True

        return space_of(names, fixed, fits)

    def fit_settings(self, values: Mapping[str, Any]) -> FitSettings:
        """A fit with these hyperparameters, beside those that are given and the preset's."""
        shared = FitSettings.model_fields.keys() & type(self).model_fields.keys()
        own = shared - Hyperparameters.model_fields.keys() - {"time_budget_s"}
        given = self.model_fields_set & Hyperparameters.model_fields.keys()
        kept = {name: getattr(self, name) for name in own | given}
        return FitSettings(out=self.study, **{**kept, **values})
