"""What a training leaves for people: figures in JSON, and their course in a picture."""

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from train.checkpoint import CheckpointInfo, EpochRecord

FIGURES = "figures.json"
PLOT = "training.png"

# A colour-blind safe triple (Okabe and Ito); the baselines are grey and told apart by their lines.
_LINES = {
    "loss": ("#0072B2", "Training loss"),
    "recall_at_20": ("#D55E00", "Recall@20"),
    "mrr_at_20": ("#009E73", "MRR@20"),
}
_BASELINE_STYLES = (":", "--", "-.")


def write_figures(
    folder: Path, info: CheckpointInfo, validation: dict[str, dict[str, float]]
) -> None:
    """`figures.json`: the validation figures by model under their protocol, and every epoch."""
    content = {
        "protocol": info.protocol,
        "epoch": info.epoch,
        "validation": validation,
        "history": [record.model_dump() for record in info.history],
    }
    (folder / FIGURES).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def plot_training(
    path: Path,
    history: Sequence[EpochRecord],
    best_epoch: int,
    baselines: dict[str, dict[str, float]],
) -> None:
    """A PNG of loss, Recall@20 and MRR@20 by epoch; baselines are level lines beside them."""
    epochs = [record.epoch for record in history]
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    measured = [name for name in ("recall_at_20", "mrr_at_20") if name in history[-1].metrics]
    axes = figure.subplots(1, 1 + len(measured), squeeze=False)[0]
    for axis, name in zip(axes, ["loss", *measured], strict=True):
        colour, title = _LINES[name]
        values = [r.loss if name == "loss" else r.metrics[name] for r in history]
        axis.plot(epochs, values, color=colour, marker="o", markersize=4, label="gru")
        axis.set_title(title if name == "loss" else f"{title}, validation")
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25)
        axis.margins(x=0.08)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
        if name == "loss":
            continue
        for style, (baseline, figures) in zip(_BASELINE_STYLES, baselines.items(), strict=False):
            axis.axhline(figures[name], color="0.45", linestyle=style, label=baseline)
        best = history[best_epoch - 1].metrics[name]
        axis.plot([best_epoch], [best], "o", color=colour, markersize=10, fillstyle="none")
        axis.annotate(
            f"{best:.4f}",
            (best_epoch, best),
            xytext=(0, 10),
            textcoords="offset points",
            ha="center",
        )
        axis.set_ylim(bottom=0, top=1.15 * max(values + [f[name] for f in baselines.values()]))
        axis.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)
