"""``python -m train prequential``: what lists would reach that learn from the stream itself."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field, PositiveInt

from train.command import Settings, TrainError
from train.data.clicks import read_clicks, split_by_time
from train.evaluate import read_as_trained
from train.fit.training_log import ColumnNames, columns_of
from train.live.fit import COUNTS, FEWEST_ASKED, LIVE, STATIC, bias_name, figures, fit_live
from train.live.replay import ASKED, Replay, network_for, one_after_the_other
from train.network.checkpoint import Checkpoint, load_checkpoint

PROTOCOL = (
    "prequential: every click of the log but a session's first is predicted by the list that was "
    "published right after the session's click before it, from what the clicks before that one had "
    "taught; all items that were ever clicked are ranked, new ones too; ties count against the list"
)
VALIDATION = 0.1


class PrequentialSettings(Settings):
    """Replay a log as the stream would see it, with lists that learn from it; figures as JSON."""

    history: str | Path
    """Click log of what came before: it is counted first, and all settings are fitted on its
    newest tenth of sessions, at most 5,000 of their clicks."""
    clicks: str | Path
    """Click log to predict, newer than history."""
    columns: ColumnNames = Field(default={})
    """Names of the logs' columns, as for fit."""
    checkpoint: Path | None = None
    """Folder that python -m train fit wrote, without having learnt from the newest tenth of
    history's sessions; unset: the counts alone."""
    served: Path | None = None
    """Folder of the network to predict clicks with; unset: checkpoint. A network that was also
    trained on history's newest tenth knows newer items."""
    idle_timeout_s: PositiveInt | None = None
    """Cut sessions at longer gaps; only without a checkpoint, which brings its own."""


def run_prequential(settings: PrequentialSettings) -> None:
    """Print the figures of each part and of the blend. Raises TrainError."""
    print(json.dumps(prequential(settings), indent=1))


def prequential(settings: PrequentialSettings) -> dict[str, Any]:
    """The figures of each part and of the blend, and what was fitted.

    Raises TrainError for a log without a next click, or with too few in the history's newest tenth.
    """
    checkpoint = load_checkpoint(settings.checkpoint) if settings.checkpoint else None
    history = _read(settings.history, settings, checkpoint)
    clicks = _read(settings.clicks, settings, checkpoint)
    _check_order(settings, history, clicks)
    split = one_after_the_other(*split_by_time(history, VALIDATION))
    n_asked = int(split[ASKED].sum())
    if n_asked < FEWEST_ASKED:
        raise TrainError(
            f"history's newest tenth has {n_asked} next clicks to fit settings on, expected at "
            f"least {FEWEST_ASKED}: use a longer log"
        )
    fitted = fit_live(split, network_for(checkpoint, split) if checkpoint else None)

    both = one_after_the_other(history, clicks)
    if not both[ASKED].any():
        raise TrainError(f"{settings.clicks} has no session with a next click to predict")
    served = load_checkpoint(settings.served) if settings.served else checkpoint
    network = network_for(served, both) if served else None
    bias = fitted.live.bias
    ranks: defaultdict[str, list[int]] = defaultdict(list)
    for question in Replay(fitted.rules, network, [bias]).questions(both):
        if network:
            ranks[STATIC].append(question.static_rank)
            ranks[bias_name(bias)].append(question.own_rank(bias))
        ranks[COUNTS].append(question.rank(fitted.counts))
        if network:
            ranks[LIVE].append(question.rank(fitted.live))
    return {
        "protocol": PROTOCOL,
        "predictions": len(ranks[COUNTS]),
        "time_scale_s": fitted.rules.time_scale_ms // 1000,
        "popularity_half_life_s": fitted.rules.popularity_half_life_ms // 1000,
        "excludes_seen": fitted.rules.excludes_seen,
        "sources": [*fitted.rules.sources, "network"],
        "weights": {
            name: mixed.weights.tolist()
            for name, mixed in ((COUNTS, fitted.counts), (LIVE, fitted.live))
        },
        "bias": bias,
        "sharpness": fitted.live.sharpness,
        "rows": [{"name": name, **figures(of_name)} for name, of_name in ranks.items()],
    }


def _check_order(
    settings: PrequentialSettings, history: pl.DataFrame, clicks: pl.DataFrame
) -> None:
    """Raise TrainError where clicks are not newer than the history, or some of them are in both."""
    begin_ms, first_ms = history["timestamp_ms"].min(), clicks["timestamp_ms"].min()
    assert isinstance(begin_ms, int)
    assert isinstance(first_ms, int)
    if first_ms < begin_ms:
        raise TrainError(
            f"{settings.clicks} begins before {settings.history}: expected a log that goes on "
            "where --history ends"
        )
    overlap = history.filter(pl.col("timestamp_ms") > first_ms)
    if shared := overlap.join(clicks, on="session_id", how="semi")["session_id"].n_unique():
        raise TrainError(
            f"{shared} sessions are in {settings.history} and in {settings.clicks} at the same "
            "time: expected logs without common clicks"
        )


def _read(
    path: str | Path, settings: PrequentialSettings, checkpoint: Checkpoint | None
) -> pl.DataFrame:
    if checkpoint:
        return read_as_trained(path, settings.columns, checkpoint.info)
    return read_clicks(
        path, columns_of(settings.columns), idle_timeout_s=settings.idle_timeout_s
    ).clicks
