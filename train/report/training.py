"""What a training leaves for people: figures as JSON, and a plot of every epoch."""

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from train.network.checkpoint import CheckpointInfo, EpochRecord

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
    """A PNG of loss, Recall@20 and MRR@20 by epoch, with baselines as horizontal lines."""
    epochs = [record.epoch for record in history]
    figure = Figure(figsize=(13, 4), layout="constrained")
    measured = [name for name in ("recall_at_20", "mrr_at_20") if name in history[-1].metrics]
    axes = figure.subplots(1, 1 + len(measured), squeeze=False)[0]
    for axis, name in zip(axes, ["loss", *measured], strict=True):
        colour, title = _LINES[name]
        values = [r.loss if name == "loss" else r.metrics[name] for r in history]
        axis.plot(epochs, values, color=colour, marker="o", markersize=4)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25)
        axis.margins(x=0.08)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
        if name == "loss":
            continue
        levels = [figures[name] for figures in baselines.values()]
        for style, level in zip(_BASELINE_STYLES, levels, strict=False):
            axis.axhline(level, color="0.45", linestyle=style)
        best = history[best_epoch - 1].metrics[name]
        axis.plot([best_epoch], [best], "o", color=colour, markersize=10, fillstyle="none")
        axis.set_title(f"Validation {title}: {best:.4f} (epoch {best_epoch})")
        axis.set_ylim(0, 1.1 * max(values + levels))
    if baselines and measured:  # below all panels, where it hides no line
        lines = axes[-1].get_lines()[1 : 1 + len(baselines)]
        figure.legend(lines, list(baselines), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
