"""Recall, MRR and NDCG of ranks, over all targets and over kinds of them.

With one relevant item a list's gain is 1, 1/rank or 1/log2(1 + rank) down to a cutoff and 0 below
it; the ideal list's is 1, so NDCG needs no normalisation.
"""

from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from train.data.sessions import TARGET_WEIGHT, Sessions
from train.measure.ranking import Ranks

CUTOFFS = (1, 5, 10, 20)
METRICS = tuple(f"{name}_at_{k}" for k in CUTOFFS for name in ("recall", "mrr", "ndcg"))


class Lost(NamedTuple):
    """Predictions that a log asks for, missing from its sessions over the catalogue."""

    predictions: int
    weight: float


NOTHING_LOST = Lost(0, 0.0)


def gain(metric: str, rank: Int64[np.ndarray, "*P"]) -> Float64[np.ndarray, "*P"]:
    """What each rank is worth to one of METRICS, from 0 to 1."""
    name, k = metric.split("_at_")
    hit = rank <= int(k)
    if name == "recall":
        return hit.astype(np.float64)
    return np.asarray(hit / (rank if name == "mrr" else np.log2(rank + 1.0)))


def figures(ranks: Ranks, lost: Lost | None = None) -> dict[str, float]:
    """METRICS over all predictions, and over the novel and the repeat targets under `novel_` and
    `repeat_`; means by the targets' weights.

    With `lost`, also METRICS with the lost predictions as misses, under `with_unknown_`.
    """
    result = _means("", ranks) | _means("novel_", ranks.of(ranks.novel))
    result |= _means("repeat_", ranks.of(~ranks.novel))
    if lost is not None:
        result |= _means("with_unknown_", ranks, lost)
    return result


def _means(prefix: str, ranks: Ranks, lost: Lost = NOTHING_LOST) -> dict[str, float]:
    weight = ranks.weight.astype(np.float64)
    total = weight.sum() + lost.weight
    result = {f"{prefix}predictions": float(len(ranks) + lost.predictions)}
    for metric in METRICS:
        mean = gain(metric, ranks.rank) @ weight / total if total > 0 else 0.0
        result[prefix + metric] = float(mean)
    return result


def lost_predictions(log: pl.DataFrame, sessions: Sessions) -> Lost:
    """Predictions of a log that its `sessions` lack, which were built from it.

    In the log itself, every click but a session's first is a prediction. A click on an item that is
    new since the training is a sure miss; so is the first one on a known item that only such clicks
    precede.
    """
    clicks = log.sort("timestamp_ms", maintain_order=True)
    later_in_log = clicks.filter(~pl.col("session_id").is_first_distinct())
    if TARGET_WEIGHT in log.columns:
        asked = later_in_log[TARGET_WEIGHT].to_numpy()
    else:
        asked = np.ones(len(later_in_log), dtype=np.float32)
    later = np.ones(sessions.n_clicks, dtype=bool)
    later[sessions.start[:-1]] = False
    answered = sessions.target_weight[later]
    return Lost(
        int(np.count_nonzero(asked)) - int(np.count_nonzero(answered)),
        max(0.0, float(asked.sum(dtype=np.float64)) - float(answered.sum(dtype=np.float64))),
    )


def list_figures(
    listed: Int64[np.ndarray, "N"], support: Int64[np.ndarray, "N"]
) -> dict[str, float]:
    """Coverage and popularity bias of a model's top-20 lists.

    `coverage_at_20`: share of the catalogue that stands in at least one list. `gini_at_20`: how
    unevenly the lists share the catalogue, 0 evenly, towards 1 all of them the same few items.
    `log_support_at_20`: mean over list entries of ln(1 + clicks on the item in training).
    """
    entries = max(1, int(listed.sum()))
    n_items = max(1, len(listed))
    place = np.arange(1, len(listed) + 1)
    gini = float(((2 * place - n_items - 1) * np.sort(listed)).sum()) / (n_items * entries)
    return {
        "coverage_at_20": float(np.count_nonzero(listed)) / n_items,
        "gini_at_20": gini,
        "log_support_at_20": float((listed * np.log1p(support)).sum()) / entries,
    }
