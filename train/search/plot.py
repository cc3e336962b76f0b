"""A search in a picture: its history, what mattered, and where the good values lie."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from optuna.distributions import CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

_BLUE, _RED, _GREY = "#0072B2", "#D55E00", "0.6"
_FEW = 10
"""Fewer finished trials than this say nothing of what mattered."""
_SLICES = 4


def plot_search(path: Path, study: Study, metric: str) -> None:
    """A PNG of the trials that ended: their values in order, the parameters' importance (PED-ANOVA,
    arXiv 2304.10255), and values against the parameters that mattered most."""
    trials = [t for t in study.get_trials(deepcopy=False) if np.isfinite(_value(t))]
    finished = [t for t in trials if t.state == TrialState.COMPLETE]
    importance: dict[str, float] = {}
    if len(finished) >= _FEW:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a parameter few trials drew is hardly known
            importance = optuna.importance.get_param_importances(study)
    of_finished = np.array([_value(trial) for trial in finished])
    best, median = of_finished.max(), np.median(of_finished)
    # So that one bad trial does not press the good ones together.
    bottom = max(of_finished.min(), best - 3 * (best - median))

    figure = Figure(figsize=(14, 8), layout="constrained")
    grid = figure.add_gridspec(2, _SLICES)
    axis = history = figure.add_subplot(grid[0, :2])
    _plot_trials(axis, range(1, len(trials) + 1), trials, bottom)
    so_far = [_value(t) if t.state == TrialState.COMPLETE else -np.inf for t in trials]
    axis.step(
        range(1, len(trials) + 1),
        np.maximum.accumulate(so_far),
        where="post",
        color=_RED,
        label="best so far",
    )
    axis.set(title=f"{len(trials)} trials, best {metric} {best:.4f}", xlabel="trial", ylabel=metric)
    figure.legend(loc="outside lower center", frameon=False, ncols=4)
    axis = figure.add_subplot(grid[0, 2:])
    axis.set_title("Share of importance")
    if importance:
        names = list(importance)[:12][::-1]
        axis.barh(names, [importance[name] for name in names], color=_BLUE)
    else:
        axis.text(0.5, 0.5, f"known from {_FEW} finished trials", ha="center", color="0.4")
    names = list(importance) or sorted({name for trial in finished for name in trial.params})
    for column, name in enumerate(names[:_SLICES]):
        axis = figure.add_subplot(grid[1, column], sharey=history, title=name)
        axis.set_ylabel("" if column else metric)
        drawn = [trial for trial in trials if name in trial.params]
        places = [trial.params[name] for trial in drawn]
        distribution = drawn[0].distributions[name]
        if isinstance(distribution, CategoricalDistribution):
            labels = [str(choice).lower() for choice in distribution.choices]
            axis.set_xticks(range(len(labels)), labels)
            places = [distribution.choices.index(place) for place in places]
        elif getattr(distribution, "log", False):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("")
        _plot_trials(axis, places, drawn, bottom)
    figure.savefig(path, dpi=110)


def _plot_trials(
    axis: Axes, places: Sequence[float], trials: Sequence[FrozenTrial], bottom: float
) -> None:
    x, y = np.array(places), np.array([_value(trial) for trial in trials])
    finished = np.array([trial.state == TrialState.COMPLETE for trial in trials])
    for shown, marker, colour, label in (
        (finished & (y >= bottom), "o", _BLUE, "finished"),
        (~finished & (y >= bottom), "o", _GREY, "pruned (its best epoch)"),
        (y < bottom, "v", _GREY, "far below"),
    ):
        axis.plot(x[shown], np.maximum(y[shown], bottom), marker, color=colour, label=label)
    axis.grid(alpha=0.25)


def _value(trial: FrozenTrial) -> float:
    if trial.state == TrialState.COMPLETE:
        return float(trial.values[0])
    return max(trial.intermediate_values.values(), default=float("nan"))
