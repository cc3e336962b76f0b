"""Weights of a blend, fitted on sessions that none of its parts has learnt from.

Every part is asked once. Of each prediction only candidates are kept: the first 100 items of each
part, and the target. An item outside all those lists can hardly be in the blend's first 20, so
the search sees Recall@20 and MRR@20 of the blend as the evaluator would, or very nearly.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from stream.live.compiled import compiled
from train.blend.blend import LIST_LENGTH, N_LENGTHS, Blend, BlendWeights, Transform, add_comparable
from train.command import TrainError
from train.data.sessions import Sessions
from train.measure.metrics import gain
from train.measure.ranking import (
    Predictor,
    Ranks,
    best_items,
    place_of,
    rank_targets,
    session_batches,
)

FITTED = ("recall_at_20", "mrr_at_20")
SCORES_PER_STEP = 4_000_000  # 16 MB for each part: with those of the parts they stay few
_ODDS = 2.0 ** np.arange(-6.0, 6.5, 0.5)
SHARES = np.concatenate([[0.0], _ODDS / (1.0 + _ODDS), [1.0]])
"""Shares that are tried for a part: dense near 0, as scales differ by much."""


class Candidates(NamedTuple):
    """P predictions, C items at most for each: the target first, -1 behind the last."""

    value: dict[tuple[str, Transform], Float32[np.ndarray, "P C"]]
    """What a part makes of each candidate, by part and transform."""
    n: Int64[np.ndarray, "P"]
    """Candidates of each prediction."""
    n_known: Int64[np.ndarray, "P"]
    """Clicks that were known."""
    weight: Float64[np.ndarray, "P"]
    """What the prediction counts for."""


def fit_blend(
    predictors: Mapping[str, Predictor],
    validation: Sessions,
    n_items: int,
    *,
    max_predictions: int = 20_000,
) -> Blend:
    """The blend of these parts that lists the next click highest in `validation`.

    Of more than `max_predictions` there an even sample of the sessions is used. What is made as
    large as possible is Recall@20 and MRR@20 together, each as a share of the best part's, for
    every prefix length by itself; the transforms are chosen by all of them. Raises TrainError
    where there is nothing to predict.
    """
    if not (validation.lengths > 1).any():
        raise TrainError("found no session of two clicks or more to fit a blend on")
    recipes, candidates = _collect(predictors, _sample(validation, max_predictions), n_items)
    best: tuple[float, BlendWeights] | None = None
    for recipe in recipes:
        value = np.stack([candidates.value[part] for part in recipe.items()], axis=1)
        total, weights = _fit_weights(value, candidates)
        if best is None or total > best[0]:
            fitted = BlendWeights(
                parts=tuple(recipe),
                transforms=tuple(recipe.values()),
                weights=tuple(tuple(np.round(row, 4).tolist()) for row in weights),
            )
            best = total, fitted
    assert best is not None
    return Blend(predictors, best[1])


def cross_fitted_ranks(
    predictors: Mapping[str, Predictor], validation: Sessions, n_items: int
) -> Ranks:
    """The blend's ranks in `validation`, each half of it by weights fitted on the other half.
    Raises TrainError where a half has nothing to predict."""
    middle = len(validation) // 2
    halves = validation.slice(0, middle), validation.slice(middle, len(validation))
    first, second = (
        rank_targets(fit_blend(predictors, fitted, n_items), measured, n_items)
        for measured, fitted in (halves, halves[::-1])
    )
    second = replace(second, session=second.session + middle)
    names = (field.name for field in fields(Ranks))
    return Ranks(**{n: np.concatenate([getattr(first, n), getattr(second, n)]) for n in names})


def _recipes(are_votes: Mapping[str, bool]) -> list[dict[str, Transform]]:
    """The transforms that are tried together; votes are scores that are never negative."""
    pairs: list[tuple[Transform, Transform]] = [
        ("standardised", "standardised"),
        ("standardised", "root"),
        ("softmax", "share"),
        ("reciprocal-rank", "reciprocal-rank"),
    ]
    recipes = [
        {part: votes if is_votes else other for part, is_votes in are_votes.items()}
        for other, votes in pairs
    ]
    return [recipe for i, recipe in enumerate(recipes) if recipe not in recipes[:i]]


def _sample(sessions: Sessions, max_predictions: int) -> Sessions:
    """Every n-th session, n as small as the number of predictions allows."""
    every = max(1, -(-(sessions.n_clicks - len(sessions)) // max_predictions))
    kept = np.arange(0, len(sessions), every)
    lengths = sessions.lengths[kept]
    start = np.concatenate([[0], np.cumsum(lengths)])
    click = np.repeat(sessions.start[kept] - start[:-1], lengths) + np.arange(start[-1])
    return Sessions(
        item_index=sessions.item_index[click],
        timestamp_ms=sessions.timestamp_ms[click],
        start=start,
        session_id=sessions.session_id[::every],
        context=sessions.context[click],
        target_weight=sessions.target_weight[click],
    )


def _collect(
    predictors: Mapping[str, Predictor], sessions: Sessions, n_items: int
) -> tuple[list[dict[str, Transform]], Candidates]:
    """Ask every part once; also the transforms to try, by what the first step's scores are."""
    recipes: list[dict[str, Transform]] = []
    values: dict[tuple[str, Transform], list[np.ndarray]] = {}
    rest: list[tuple[np.ndarray, ...]] = []
    for row, batch in session_batches(sessions, max(1, SCORES_PER_STEP // n_items)):
        parts = [predictor.predict(batch) for predictor in predictors.values()]
        comparable = np.empty((len(row), n_items), dtype=np.float32)
        for prefix, *scores in zip(batch.steps(), *parts, strict=True):
            b, n_known = prefix.shape
            named = dict(zip(predictors, scores, strict=True))
            if not recipes:
                recipes = _recipes({name: bool((s >= 0).all()) for name, s in named.items()})
                values = {part: [] for recipe in recipes for part in recipe.items()}
            lists = [best_items(part, LIST_LENGTH) for part in scores]
            target = batch.item_index[:b, n_known]
            item, n = _distinct(np.concatenate([target[:, None], *lists], axis=1))
            for (name, transform), kept in values.items():
                comparable[:b] = 0.0
                add_comparable(named[name], transform, 1.0, comparable[:b])
                kept.append(comparable[np.arange(b)[:, None], item])
            weight = sessions.target_weight[sessions.start[row[:b]] + n_known]
            rest.append((n, np.full(b, n_known), weight.astype(np.float64)))
    n, n_known, weight = (np.concatenate(column) for column in zip(*rest, strict=True))
    value = {part: np.concatenate(kept) for part, kept in values.items()}
    return recipes, Candidates(value, n, n_known, weight)


def _distinct(
    item: Int64[np.ndarray, "b C"],
) -> tuple[Int64[np.ndarray, "b C"], Int64[np.ndarray, "b"]]:
    """Each row's items once, in their order, then its first one again; how many there are."""
    order = np.argsort(item, axis=1, kind="stable")
    ordered = np.take_along_axis(item, order, axis=1)
    left_out = np.empty(item.shape, dtype=bool)
    np.put_along_axis(left_out, order, np.diff(ordered, axis=1, prepend=-1) == 0, axis=1)
    n = np.count_nonzero(~left_out, axis=1)
    front = np.take_along_axis(item, np.argsort(left_out, axis=1, kind="stable"), axis=1)
    return np.where(np.arange(item.shape[1]) < n[:, None], front, item[:, :1]), n


def _fit_weights(
    value: Float32[np.ndarray, "P K C"], candidates: Candidates
) -> tuple[float, Float64[np.ndarray, "lengths K"]]:
    """The best weights for every prefix length, and what they gain over all predictions."""
    n_parts = value.shape[1]
    alone = _ranks(value, candidates.n, np.eye(n_parts))
    best_alone = _sums(alone, candidates.weight).max(axis=1)
    scale = 1 / np.maximum(best_alone, 1e-9)
    weights = np.empty((N_LENGTHS, n_parts))
    total = 0.0
    for length in range(N_LENGTHS):
        counts = candidates.weight > 0
        chosen = counts & (np.minimum(candidates.n_known, N_LENGTHS) == length + 1)
        if not chosen.any():  # no prefix is so long: the weights are those of all
            chosen = counts
        found, weights[length] = _climb(
            value[chosen], candidates.n[chosen], candidates.weight[chosen], scale
        )
        total += found
    return total, weights


def _climb(
    value: Float32[np.ndarray, "P K C"],
    n: Int64[np.ndarray, "P"],
    weight: Float64[np.ndarray, "P"],
    scale: Float64[np.ndarray, "2"],
) -> tuple[float, Float64[np.ndarray, "K"]]:
    """From the best part alone, mix in a share of that part which gains most, while one does. For
    two parts the first round is the whole line between them."""
    n_parts = value.shape[1]
    tried = np.eye(n_parts)
    best_total, best = -1.0, tried[0]
    for _ in range(2 * n_parts):
        rank = _ranks(value, n, tried)
        recall, mrr = scale[:, None] * _sums(rank, weight)
        total = recall + mrr
        if total.max() <= best_total:
            break
        best_total, best = float(total.max()), tried[int(total.argmax())]
        mixed = SHARES[:, None, None] * np.eye(n_parts) + (1 - SHARES[:, None, None]) * best
        tried = mixed.reshape(-1, n_parts)
    return best_total, best


def _sums(
    rank: Int64[np.ndarray, "P W"], weight: Float64[np.ndarray, "P"]
) -> Float64[np.ndarray, "2 W"]:
    """Recall@20 and MRR@20 of each blend, times the predictions."""
    return np.stack([(weight[:, None] * gain(metric, rank)).sum(axis=0) for metric in FITTED])


@compiled
def _ranks(
    value: Float32[np.ndarray, "P K C"],
    n: Int64[np.ndarray, "P"],
    weights: Float64[np.ndarray, "W K"],
) -> Int64[np.ndarray, "P W"]:
    """The place of candidate 0 for each of W blends, behind every one that scores no less."""
    n_predictions, n_parts, n_candidates = value.shape
    rank = np.empty((n_predictions, len(weights)), dtype=np.int64)
    score = np.empty(n_candidates)
    for p in range(n_predictions):
        for w in range(len(weights)):
            for candidate in range(n[p]):
                score[candidate] = 0.0
                for part in range(n_parts):
                    score[candidate] += weights[w, part] * value[p, part, candidate]
            rank[p, w] = place_of(score[: n[p]], score[0])
    return rank
