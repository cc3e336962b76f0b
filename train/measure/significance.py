"""How certain a figure is, and whether two models differ, both from kept ranks.

Sessions are drawn, not predictions: those of one session are not independent. All models of a log
are resampled with the same draws, which makes their differences paired.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt16

from train.measure.metrics import gain
from train.measure.ranking import Ranks
from train.measure.slices import Slicing

RESAMPLES = 1000
FLIPS = 4999
"""Sign flips of a paired test: the smallest p-value is 1 / 5,000."""
_LOW_HIGH = (2.5, 97.5)
_CHUNK = 64  # resamples at a time: of a million sessions 128 MB of counts, 512 MB as floats
_KEPT_SESSIONS = 50_000  # of so many all resamples are 100 MB


class Estimate(NamedTuple):
    """A figure with its 95 % bootstrap interval; NaN where there was nothing to measure."""

    value: float
    low: float
    high: float


class Part(NamedTuple):
    """A part of an evaluation and its figures."""

    label: str
    predictions: int
    figures: dict[str, Estimate]


class Difference(NamedTuple):
    """How much better one model is than another in one figure, and how likely by chance."""

    value: float
    low: float
    high: float
    p_value: float


def estimate(ranks: Ranks, metrics: Sequence[str], slicing: Slicing | None = None) -> list[Part]:
    """The metrics of every part of `slicing`, with intervals; of all predictions without one.
    Percentiles of RESAMPLES bootstrap samples of the sessions that hold a prediction."""
    if slicing is None:
        slicing = Slicing("all", ("all",), np.zeros(len(ranks), dtype=np.int64))
    inside = slicing.label[:, None] == np.arange(len(slicing.labels))  # P x parts
    weights = np.where(inside, ranks.weight[:, None], 0.0)
    gains = [weights * gain(metric, ranks.rank)[:, None] for metric in metrics]
    columns = np.concatenate([weights, *gains], axis=1)
    sums = _by_session(ranks, columns)
    shape = (1 + len(metrics), len(slicing.labels))
    value = _ratios(sums.sum(axis=0, keepdims=True).reshape(1, *shape))[0]
    sampled = _ratios(_resample(sums).reshape(-1, *shape))
    return [
        Part(
            label,
            int(np.count_nonzero(inside[:, part])),
            {
                metric: Estimate(float(value[m, part]), *_interval(sampled[:, m, part]))
                for m, metric in enumerate(metrics)
            },
        )
        for part, label in enumerate(slicing.labels)
    ]


def compare(a: Ranks, b: Ranks, metric: str) -> Difference:
    """How much better `a` is than `b`, with a paired bootstrap's interval and a two-sided sign-flip
    test.

    Were the models equal, each session's difference would have come with the other sign as well:
    the p-value is the share of FLIPS random flips whose sum is as far from 0, the observed one
    among them. Raises ValueError where they did not predict the same clicks.
    """
    same = len(a) == len(b) and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("session", "position", "target", "weight")
    )
    if not same:
        raise ValueError(
            f"expected two models with the same predictions, found {len(a)} and {len(b)}"
        )
    weight = a.weight.astype(np.float64)
    gained = weight * (gain(metric, a.rank) - gain(metric, b.rank))
    sums = _by_session(a, np.column_stack([weight, gained]))
    sampled = _ratios(_resample(sums)[:, :, None])[:, 0, 0]
    value = float(sums[:, 1].sum() / sums[:, 0].sum()) if len(sums) else 0.0
    return Difference(value, *_interval(sampled), p_value=_sign_flip_test(sums[:, 1]))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm, Scand. J. Statist. 6, 1979)."""
    order = np.argsort(p_values, kind="stable")
    factor = np.arange(len(p_values), 0, -1)
    corrected = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * factor))
    result = np.empty(len(p_values))
    result[order] = corrected
    return result.tolist()


def _by_session(ranks: Ranks, columns: Float64[np.ndarray, "P M"]) -> Float64[np.ndarray, "S M"]:
    """Sums over each session's predictions, which are adjacent."""
    first = np.flatnonzero(np.diff(ranks.session, prepend=-1))
    return np.add.reduceat(columns, first) if len(first) else columns


def _resample(sums: Float64[np.ndarray, "S M"]) -> Float64[np.ndarray, "R M"]:
    """Sums over RESAMPLES samples of S sessions with replacement."""
    # As a matrix product this would start a BLAS thread a core: 5 to 14 ms for 2,000 sessions
    # and a chunk on a busy machine, where the plain loop takes 1 ms.
    samples = [
        np.einsum("rs,sm->rm", times.astype(np.float64), sums) for times in _draws(len(sums))
    ]
    return np.concatenate(samples) if samples else np.zeros((RESAMPLES, sums.shape[1]))


def _draws(n_sessions: int) -> Iterable[UInt16[np.ndarray, "chunk S"]]:
    """How often each session is drawn in each resample; the same for the same number."""
    return _kept_draws(n_sessions) if n_sessions <= _KEPT_SESSIONS else _make_draws(n_sessions)


@lru_cache(maxsize=1)  # a report asks for the same draws several times a model
def _kept_draws(n_sessions: int) -> tuple[UInt16[np.ndarray, "chunk S"], ...]:
    return tuple(_make_draws(n_sessions))


def _make_draws(n_sessions: int) -> Iterator[UInt16[np.ndarray, "chunk S"]]:
    rng = np.random.default_rng(RESAMPLES)
    for begin in range(0, RESAMPLES if n_sessions else 0, _CHUNK):
        times = np.empty((min(_CHUNK, RESAMPLES - begin), n_sessions), dtype=np.uint16)
        for row in times:
            row[:] = np.bincount(rng.integers(0, n_sessions, n_sessions), minlength=n_sessions)
        yield times


def _ratios(sums: Float64[np.ndarray, "R M parts"]) -> Float64[np.ndarray, "R M_less_1 parts"]:
    """Weighted means: row 0 of the second axis holds the weights of all others."""
    with np.errstate(invalid="ignore"):
        return np.asarray(sums[:, 1:] / np.where(sums[:, :1] > 0, sums[:, :1], np.nan))


def _interval(sampled: Float64[np.ndarray, "R"]) -> tuple[float, float]:
    measured = sampled[~np.isnan(sampled)]
    if not len(measured):
        return float("nan"), float("nan")
    low, high = np.percentile(measured, _LOW_HIGH)
    return float(low), float(high)


def _sign_flip_test(difference: Float64[np.ndarray, "S"]) -> float:
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    # Sums of the same numbers in another order differ in their last digits: equal, not farther.
    observed = abs(difference.sum()) - 1e-9 * np.abs(difference).sum()
    rng = np.random.default_rng(FLIPS)
    as_far = 1
    for begin in range(0, FLIPS, _CHUNK):
        n = min(_CHUNK, FLIPS - begin)
        bits = np.frombuffer(rng.bytes(n * -(-len(difference) // 8)), dtype=np.uint8).reshape(n, -1)
        flips = np.unpackbits(bits, axis=1, count=len(difference)).astype(np.float64)
        as_far += int(
            np.count_nonzero(np.abs(2 * flips @ difference - difference.sum()) >= observed)
        )
    return as_far / (FLIPS + 1)
