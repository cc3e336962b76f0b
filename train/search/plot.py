"""A search in a picture: its history, what mattered, and where the good values lie."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from optuna.distributions import CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

_FINISHED, _BEST, _PRUNED = "#0072B2", "#D55E00", "0.6"
_FEW = 10
"""Fewer finished trials than this say nothing of what mattered."""
_SLICES = 4


def plot_search(path: Path, study: Study, metric: str) -> None:
    """A PNG of the trials that ended: their values in order, the parameters' importance (PED-ANOVA,
    arXiv 2304.10255), and values against the parameters that mattered most."""
    trials = [t for t in study.get_trials(deepcopy=False) if np.isfinite(_value(t))]
    finished = [t for t in trials if t.state == TrialState.COMPLETE]
    importance = _importance(study, finished)
    sliced = list(importance)[:_SLICES] or sorted({n for t in finished for n in t.params})[:_SLICES]
    figure = Figure(figsize=(14, 8), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.add_gridspec(2, 1)
    above = rows[0].subgridspec(1, 2, width_ratios=(3, 2))
    below = rows[1].subgridspec(1, _SLICES)
    bottom = _bottom(finished)
    history = figure.add_subplot(above[0])
    _plot_history(history, trials, metric, bottom)
    _plot_importance(figure.add_subplot(above[1]), importance)
    for column, name in enumerate(sliced):
        axis = figure.add_subplot(below[column], sharey=history)
        _plot_slice(axis, name, trials, bottom)
        axis.set_ylabel("" if column else metric)
        axis.tick_params(labelleft=column == 0)
    figure.legend(loc="outside lower center", frameon=False, ncols=4)
    figure.savefig(path, dpi=110)


def _plot_history(axis: Axes, trials: Sequence[FrozenTrial], metric: str, bottom: float) -> None:
    number = range(1, len(trials) + 1)
    _plot_trials(axis, number, trials, bottom)
    of_finished = [_value(t) if t.state == TrialState.COMPLETE else -np.inf for t in trials]
    best = np.maximum.accumulate(of_finished)
    axis.step(number, best, where="post", color=_BEST)
    axis.plot([], [], "o", color=_FINISHED, label="finished")
    axis.plot([], [], "o", color=_PRUNED, fillstyle="none", label="pruned (its best epoch)")
    axis.plot([], [], color=_BEST, label="best so far")
    axis.plot([], [], "v", color=_PRUNED, fillstyle="none", label="far below")
    axis.set_title(f"{len(trials)} trials, best {metric} {best[-1]:.4f}")
    axis.set_xlabel("trial")
    axis.set_ylabel(metric)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _bare(axis)


def _plot_importance(axis: Axes, importance: dict[str, float]) -> None:
    axis.set_title("Share of importance")
    if not importance:
        axis.text(0.5, 0.5, f"known from {_FEW} finished trials", ha="center", color="0.4")
        axis.set_axis_off()
        return
    names = list(importance)[:12][::-1]
    axis.barh(names, [importance[name] for name in names], color=_FINISHED)
    _bare(axis)
    axis.grid(visible=False, axis="y")


def _plot_slice(axis: Axes, name: str, trials: Sequence[FrozenTrial], bottom: float) -> None:
    drawn = [trial for trial in trials if name in trial.params]
    distribution = drawn[0].distributions[name]
    categories: list[str] = []
    if isinstance(distribution, CategoricalDistribution):
        categories = [str(choice).lower() for choice in distribution.choices]
        axis.set_xticks(range(len(categories)), categories)
        axis.set_xlim(-0.5, len(categories) - 0.5)
    elif getattr(distribution, "log", False):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
    values = [trial.params[name] for trial in drawn]
    places = [categories.index(str(v).lower()) for v in values] if categories else values
    _plot_trials(axis, places, drawn, bottom)
    axis.set_title(name)
    _bare(axis)


def _plot_trials(
    axis: Axes, places: Sequence[int | float], trials: Sequence[FrozenTrial], bottom: float
) -> None:
    x, y = np.array(places), np.array([_value(trial) for trial in trials])
    finished = np.array([trial.state == TrialState.COMPLETE for trial in trials])
    for these, colour, fill in ((~finished, _PRUNED, "none"), (finished, _FINISHED, "full")):
        for inside, marker in ((y >= bottom, "o"), (y < bottom, "v")):  # v: below the picture
            shown = these & inside
            axis.plot(
                x[shown],
                np.maximum(y[shown], bottom),
                marker,
                color=colour,
                fillstyle=fill,
                markersize=5,
            )


def _value(trial: FrozenTrial) -> float:
    if trial.state == TrialState.COMPLETE:
        return float(trial.values[0])
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        return max(trial.intermediate_values.values())
    return float("nan")


def _bottom(trials: Sequence[FrozenTrial]) -> float:
    """Where to cut the picture, so that one bad trial does not press the good ones together."""
    values = np.array([_value(trial) for trial in trials])
    best, median = values.max(), np.median(values)
    return float(max(values.min(), best - 3 * (best - median)))


def _importance(study: Study, finished: Sequence[FrozenTrial]) -> dict[str, float]:
    """Shares that add up to 1, largest first; empty where there are too few trials."""
    if len(finished) < _FEW:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a parameter few trials drew is hardly known
        return optuna.importance.get_param_importances(study)


def _bare(axis: Axes) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
