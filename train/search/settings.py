"""Settings of a search: what is drawn, what is fixed, and what a trial is worth."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from train.fit.settings import TrainingSettings
from train.measure.metrics import METRICS
from train.network.hyperparameters import Hyperparameters
from train.pairs import Pairs
from train.search.space import PARAMETERS, SPACE, Space, space_of


class SearchSettings(TrainingSettings):
    """Search hyperparameters for a click log by their figures on its validation sessions."""

    study: Path
    """Folder of study.db, best.json and search.png; a search resumes where the folder's ended."""
    fixed: Pairs = Field(default={})
    """Hyperparameters that no trial changes, such as cell=lstm,hidden_size=256."""
    space: tuple[str, ...] = Field(
        default=(),
        description="Hyperparameters to draw. Unset: all of the space that are not fixed, more "
        "than 50 trials can tell apart. The space: "
        + "; ".join(str(dimension) for dimension in SPACE)
        + ".",
    )
    trials: PositiveInt = 50
    """Trials of the study, including those of earlier runs; the first is the preset."""
    time_budget_s: PositiveFloat | None = None
    """Start no trial after this many seconds."""
    metric: str = "ndcg_at_20"
    """Validation figure to maximise: recall, mrr or ndcg at 1, 5, 10 or 20. NDCG rewards the hit as
    Recall does and its rank as MRR does; Recall alone buys hits at the end of the list with a high
    dropout, MRR alone gives them up."""
    seeds: PositiveInt = 1
    """Trainings per trial, with seed, seed + 1, ...; its value is their mean."""
    seed: NonNegativeInt = 1
    """Of the draws, and of a trial's first training."""
    prune: bool = True
    """End a trial whose first training is below the median of finished ones after a third of its
    epochs."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of every trial, not only its figures."""

    @model_validator(mode="after")
    def _can_be_searched(self) -> "SearchSettings":
        if self.metric not in METRICS:
            raise ValueError(f"metric={self.metric} is not one of {', '.join(METRICS)}")
        if self.validation == 0:
            raise ValueError("validation=0 leaves nothing to compare trials by")
        for name in self.fixed.keys() - Hyperparameters.model_fields.keys():
            raise ValueError(f"fixed={name} is not a hyperparameter")
        for name in self.space:
            if name not in PARAMETERS:
                raise ValueError(f"space={name} is not one of {', '.join(PARAMETERS)}")
            if name in self.fixed:
                raise ValueError(
                    f"space={name} and fixed={name}={self.fixed[name]}: a hyperparameter is "
                    "either searched or fixed"
                )
        space = self.search_space()
        never = space.never_drawn()
        for name in set(self.space) & never.keys():
            needed = never[name].parameter
            raise ValueError(f"space={name} has no effect with {needed}={space.fixed[needed]}")
        if not space.dimensions:
            raise ValueError("every hyperparameter of the space is fixed: nothing to search")
        return self

    def search_space(self) -> Space:
        """What a trial draws, and what it leaves as it is."""
        names = self.space or tuple(name for name in PARAMETERS if name not in self.fixed)
        hyperparameters = self.hyperparameters({}).model_dump()
        fixed = {name: value for name, value in hyperparameters.items() if name not in names}
        of_click, gap = any(name != "gap" for name in self.context), "gap" in self.context
        fixed["context"] = (("none", "gap"), ("input", "both"))[of_click][gap]

        def fits(name: str, value: Any) -> bool:
            try:
                self.hyperparameters({name: value})
            except ValueError:
                return False
            return True

        return space_of(names, fixed, fits)

    def hyperparameters(
        self, drawn: Mapping[str, Any], n_clicks: int | None = None
    ) -> Hyperparameters:
        """Those drawn and those fixed; else as `combined` says."""
        found = self.combined({"seed": self.seed, **self.fixed, **drawn}, n_clicks)
        found.check_context(self.context)
        return found
