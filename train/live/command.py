"""``python -m train prequential``: what lists would reach that learn from the stream itself."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import structlog
from pydantic import Field, PositiveInt

from stream.live.blend import Blend, fit_weights
from stream.live.rules import Rules
from train.command import Settings, TrainError
from train.data.clicks import read_clicks
from train.data.order import OWN_MS
from train.evaluate import read_as_trained
from train.fit.training_log import ColumnNames, columns_of
from train.live.network import Network
from train.live.replay import STATIC, Asked, Replay, bias_name
from train.network.checkpoint import Checkpoint, load_checkpoint

log = structlog.get_logger()

PROTOCOL = (
    "prequential: every click of the log but a session's first is predicted from the clicks before "
    "it, then learnt from; all items that were ever clicked are ranked, new ones too; ties count "
    "against the list"
)
TIME_SCALES_MS = tuple(60_000 * minutes for minutes in (45, 6 * 60, 2 * 1440, 16 * 1440))
"""What ``Rules.time_scale_ms`` is chosen from: a news site, a day's offers, a shop, places."""
BIASES = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
"""What the bias of the network's own list is chosen from; a blend has that or none."""
NETWORK_FACTORS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""What the network's likeliest weights are multiplied by: the likeliest blend is not the best
list. On a news site a quarter to a half gave .644/.282, the likeliest .640/.276."""
FEWEST_REPEATS = 0.001
"""Where fewer of the next clicks are on items of the session, those are in no list."""
VALIDATION = 0.1
COUNTS, LIVE = "counts", "live"


class PrequentialSettings(Settings):
    """Replay a log as the stream would see it, with lists that learn from it; figures as JSON."""

    history: str | Path
    """Click log of what came before: it is counted first, and all settings are fitted on the part
    after nine tenths of its sessions have begun."""
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
    """Print the figures of each part and of the blend. Raises TrainError for a log without a next
    click."""
    checkpoint = load_checkpoint(settings.checkpoint) if settings.checkpoint else None
    history = _read(settings.history, settings, checkpoint)
    clicks = _read(settings.clicks, settings, checkpoint)
    cut_ms = _begin_of_newest(history)
    network = _network(checkpoint, history, history.filter(pl.col("timestamp_ms") >= cut_ms))
    excludes_seen = _share_of_repeats(history) < FEWEST_REPEATS
    biases: tuple[float, ...] = BIASES if network else ()

    rules = _choose_rules(history, cut_ms, excludes_seen=excludes_seen)
    learnt = Replay(rules, network).run(history, cut_ms, {}, biases)
    prefix = np.array(learnt.prefix)
    blends = {COUNTS: Blend(fit_weights(learnt.shares_with(None), prefix))}
    bias = 0.0
    if network:
        bias = max(biases, key=lambda b: _worth(learnt, bias_name(b)))
        candidates = {
            f"{b:g} {factor:g}": Blend(_scaled(weights, factor), b)
            for n, b in enumerate(biases)
            if b in (0.0, bias)
            for weights in (fit_weights(learnt.shares_with(n), prefix),)
            for factor in NETWORK_FACTORS
        }
        tried = Replay(rules, network).run(history, cut_ms, candidates, tuple({0.0, bias}))
        blends[LIVE] = candidates[max(candidates, key=lambda name: _worth(tried, name))]
    if served := load_checkpoint(settings.served) if settings.served else checkpoint:
        network = _network(served, _after_each_other(history, clicks), clicks)

    replay = Replay(rules, network)
    replay.run(history, from_ms=int(history["timestamp_ms"].max()) + 1)  # type: ignore[arg-type]
    biases = tuple({bias, blends[LIVE].bias}) if network else ()
    asked = replay.run(clicks, 0, blends, biases)
    if not asked.prefix:
        raise TrainError(f"{settings.clicks} has no session with a next click to predict")
    names = (STATIC, bias_name(bias), COUNTS, LIVE) if network else (COUNTS,)
    result = {
        "protocol": PROTOCOL,
        "predictions": len(asked.prefix),
        "time_scale_s": rules.time_scale_ms // 1000,
        "excludes_seen": rules.excludes_seen,
        "sources": [*rules.sources, "network"],
        "weights": {name: np.round(mixed.weights, 4).tolist() for name, mixed in blends.items()},
        "bias": {name: mixed.bias for name, mixed in blends.items()},
        "rows": [{"name": name, **_figures(asked, name)} for name in names],
    }
    print(json.dumps(result, indent=1))


def _read(
    path: str | Path, settings: PrequentialSettings, checkpoint: Checkpoint | None
) -> pl.DataFrame:
    """The good clicks in order of time."""
    if checkpoint:
        found = read_as_trained(path, settings.columns, checkpoint.info)
    else:
        found = read_clicks(
            path, columns_of(settings.columns), idle_timeout_s=settings.idle_timeout_s
        ).clicks
    text = pl.col("session_id", "item_id").cast(pl.String)
    return found.with_columns(text).sort("timestamp_ms", maintain_order=True)


def _network(
    checkpoint: Checkpoint | None, clicks: pl.DataFrame, asked: pl.DataFrame
) -> Network | None:
    """A network that was shown the sessions of the clicks it is asked for, and no others."""
    if checkpoint is None:
        return None
    network = Network(checkpoint)
    names = asked["session_id"].unique().to_list()
    network.show(clicks.filter(pl.col("session_id").is_in(names)))
    return network


def _after_each_other(history: pl.DataFrame, clicks: pl.DataFrame) -> pl.DataFrame:
    """Both, as a session may go on from one to the other."""
    both = pl.concat([history, clicks], how="diagonal_relaxed")
    if OWN_MS in both.columns:
        both = both.with_columns(pl.col(OWN_MS).fill_null(pl.col("timestamp_ms")))
    return both


def _begin_of_newest(history: pl.DataFrame) -> int:
    """When the newest tenth of the sessions begins. Raises TrainError where there is none."""
    begins = history.group_by("session_id").agg(pl.col("timestamp_ms").min())["timestamp_ms"].sort()
    n_newest = int(VALIDATION * len(begins))
    if not n_newest:
        raise TrainError(f"history has {len(begins)} sessions, too few to fit anything on")
    return int(begins[len(begins) - n_newest])


def _share_of_repeats(history: pl.DataFrame) -> float:
    """How many of the next clicks are on an item of the session."""
    is_next = ~pl.col("session_id").is_first_distinct()
    is_repeat = ~pl.struct("session_id", "item_id").is_first_distinct()  # which is a next click
    n_repeats, n_next = history.select(is_repeat.sum(), is_next.sum().alias("next")).row(0)
    return float(n_repeats / max(1, n_next))


def _choose_rules(history: pl.DataFrame, cut_ms: int, *, excludes_seen: bool) -> Rules:
    """Those under which equally weighted counts list the newest part best."""
    found: dict[Rules, float] = {}
    for time_scale_ms in TIME_SCALES_MS:
        rules = Rules(time_scale_ms, excludes_seen)
        n_sources = len(rules.sources) + 1
        equal = Blend(fit_weights(np.ones((1, n_sources)), np.zeros(1, dtype=np.int64)))
        asked = Replay(rules).run(history, cut_ms, {COUNTS: equal})
        if not asked.prefix:
            raise TrainError("history's newest tenth has no session with a next click")
        found[rules] = _worth(asked, COUNTS)
        figures = _figures(asked, COUNTS)
        log.info("time_scale_tried", time_scale_s=time_scale_ms // 1000, **figures)
    return max(found, key=lambda rules: found[rules])


def _scaled(weights: np.ndarray, factor: float) -> np.ndarray:
    """Weights with the network's multiplied."""
    scaled = weights.copy()
    scaled[:, -1] *= factor
    return scaled


def _figures(asked: Asked, name: str) -> dict[str, float]:
    rank = np.array(asked.ranks[name])
    hit = rank <= 20
    return {
        "recall_at_20": round(float(hit.mean()), 4),
        "mrr_at_20": round(float(np.where(hit, 1.0 / rank, 0.0).mean()), 4),
    }


def _worth(asked: Asked, name: str) -> float:
    return sum(_figures(asked, name).values())
