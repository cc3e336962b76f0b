"""Compiled loops of a training step, each one pass over memory that PyTorch has no operation for.

One loop a case, as LLVM vectorises a loop without branches; float32 throughout, as a single
float64 constant halves the speed. `row` are distinct; `gradient[u]` belongs to `row[u]`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

Table = np.ndarray  # [N, H] of float32; H is 1 for a vector

# Sums may be reordered, which they must be to be vectorised. Nothing else that could change a
# number in kind: infinities and NaN stay what they are.
_FAST = {"contract", "nsz", "arcp", "reassoc"}

_compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = njit(
    cache=True, nogil=True, error_model="numpy", fastmath=_FAST
)


@_compiled
def adagrad(
    weight: Table,
    velocity: Table,
    squares: Table,
    row: np.ndarray,
    gradient: Table,
    lr: np.float32,
    momentum: np.float32,
    epsilon: np.float32,
) -> None:
    """Adagrad, with Nesterov momentum unless it is 0."""
    if momentum == 0:
        for u in range(len(row)):
            w, a, g = weight[row[u]], squares[row[u]], gradient[u]
            for j in range(len(g)):
                a[j] += g[j] * g[j]
                w[j] = w[j] - lr * g[j] / (math.sqrt(a[j]) + epsilon)
        return
    for u in range(len(row)):
        w, v, a, g = weight[row[u]], velocity[row[u]], squares[row[u]], gradient[u]
        for j in range(len(g)):
            a[j] += g[j] * g[j]
            change = -lr * g[j] / (math.sqrt(a[j]) + epsilon)
            v[j] = momentum * v[j] + change
            w[j] = w[j] + change + momentum * v[j]


@_compiled
def adam(
    weight: Table,
    first: Table,
    squares: Table,
    row: np.ndarray,
    gradient: Table,
    lr: np.float32,
    keep_first: np.float32,
    keep_second: np.float32,
    of_first: np.float32,
    of_second: np.float32,
    epsilon: np.float32,
) -> None:
    """Adam; `of_first` and `of_second` correct the bias of the moments."""
    one = np.float32(1)
    for u in range(len(row)):
        w, m, s, g = weight[row[u]], first[row[u]], squares[row[u]], gradient[u]
        for j in range(len(g)):
            m[j] = keep_first * m[j] + (one - keep_first) * g[j]
            s[j] = keep_second * s[j] + (one - keep_second) * g[j] * g[j]
            change = m[j] * of_first / (math.sqrt(s[j] * of_second) + epsilon)
            w[j] -= lr * change


@_compiled
def sgd(
    weight: Table,
    velocity: Table,
    row: np.ndarray,
    gradient: Table,
    lr: np.float32,
    momentum: np.float32,
) -> None:
    """Gradient descent, with Nesterov momentum unless it is 0."""
    if momentum == 0:
        for u in range(len(row)):
            w, g = weight[row[u]], gradient[u]
            for j in range(len(g)):
                w[j] = w[j] - lr * g[j]
        return
    for u in range(len(row)):
        w, v, g = weight[row[u]], velocity[row[u]], gradient[u]
        for j in range(len(g)):
            v[j] = momentum * v[j] - lr * g[j]
            w[j] = w[j] - lr * g[j] + momentum * v[j]


@_compiled
def number_items(
    item_index: np.ndarray, mark: np.ndarray, distinct: np.ndarray, place: np.ndarray
) -> int:
    """Fills `distinct` and `place`; `mark` is -1 throughout before and after. Returns U."""
    n_distinct = 0
    for c in range(len(item_index)):
        item = item_index[c]
        if mark[item] < 0:
            mark[item] = n_distinct
            distinct[n_distinct] = item
            n_distinct += 1
        place[c] = mark[item]
    for u in range(n_distinct):
        mark[distinct[u]] = -1
    return n_distinct


@_compiled
def first_free_lanes(n_steps: np.ndarray, n_lanes: int) -> np.ndarray:
    """The lane of each session in turn: the one that has the fewest steps so far, of equal ones
    the first."""
    lane, used = np.empty(len(n_steps), np.int64), np.zeros(n_lanes, np.int64)
    for s in range(len(n_steps)):
        free = 0
        for b in range(1, n_lanes):
            if used[b] < used[free]:
                free = b
        lane[s] = free
        used[free] += n_steps[s]
    return lane


@njit(inline="always")
def _exp(x: np.float32) -> np.float32:
    """e^x to 1e-7, as arithmetic that LLVM vectorises: 3 x as fast as a library's exp. 2^n e^r with
    n whole and |r| < ln 2 / 2; e^r by the polynomial of Cephes' expf."""
    x = min(max(x, np.float32(-87)), np.float32(88))
    exponent = np.int32(x * np.float32(1.44269504) + np.float32(127.5))  # n + 127, rounded
    n = np.float32(exponent - np.int32(127))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = np.int32(exponent << np.int32(23)).view(np.float32)
    return (p * r * r + r + np.float32(1)) * power


@njit(inline="always")
def _sigmoid(x: np.float32) -> np.float32:
    return np.float32(1) / (np.float32(1) + _exp(-x))


@_compiled
def bpr_max(
    scores: Table,
    target: np.ndarray,
    bpreg: np.float32,
    elu: np.float32,
    no_negative: np.float32,
    loss: np.ndarray,
    gradient: Table,
) -> None:
    """`losses.bpr_max` and its gradient, a row at a time, so that a row stays in the cache. Fills
    `loss` [B] and `gradient` [B, C]."""
    n_columns = scores.shape[1]
    one, zero = np.float32(1), np.float32(0)
    bent, weight = np.empty(n_columns, np.float32), np.empty(n_columns, np.float32)
    win = np.empty(n_columns, np.float32)
    for b in range(len(scores)):
        row, t = scores[b], target[b]
        top = np.float32(-np.inf)
        for j in range(n_columns):
            x = row[j]
            if elu > zero:
                y = max(x, zero) + elu * (_exp(min(x, zero)) - one)
                x = y if x > no_negative else x
            bent[j] = x
        of_target = bent[t]
        bent[t] = np.float32(-3e38)
        for j in range(n_columns):
            top = max(top, bent[j])
        bent[t] = of_target
        total = wins = squares = wins_squared = zero
        for j in range(n_columns):
            weight[j] = _exp(bent[j] - top)
        weight[t] = zero
        for j in range(n_columns):
            x, w = bent[j], weight[j]
            d = _sigmoid(of_target - x)
            win[j] = d
            total += w
            wins += w * d
            wins_squared += w * d * d
            squares += w * x * x
        share = one / total
        # 1e-24 as in float32 the wins of a lost target underflow to 0; its log is -55.
        wins = wins * share + np.float32(1e-24)
        wins_squared *= share
        squares *= share
        out = gradient[b]
        for j in range(n_columns):
            x, d = bent[j], win[j]
            g = weight[j] * share * (one - d * d / wins + bpreg * (x * x + x + x - squares))
            out[j] = g * (one if elu == zero else min(one, x + elu) if x < zero else one)
        g = wins_squared / wins - one
        out[t] = g * (of_target + elu if elu > zero and of_target < zero else one)
        loss[b] = bpreg * squares - np.float32(math.log(wins))


# The loops over gates are apart, each with one output: LLVM gives up on a loop whose writes it
# cannot tell from its reads, and the GRU then takes 1.1 ms instead of 0.1.
@_compiled
def gru(x_gates: Table, h_gates: Table, hidden: Table, output: Table, gates: Table) -> None:
    """The gates of `cells.gru` in one pass; fills `output` [B, H] and keeps `gates` [B, 3H]."""
    n = hidden.shape[1]
    one, two = np.float32(1), np.float32(2)
    for b in range(len(hidden)):
        x, h, before, out = x_gates[b], h_gates[b], hidden[b], output[b]
        both, update, new = gates[b, : 2 * n], gates[b, n : 2 * n], gates[b, 2 * n :]
        x_new, h_new = x[2 * n :], h[2 * n :]
        for j in range(2 * n):
            both[j] = _sigmoid(x[j] + h[j])
        for j in range(n):
            new[j] = two * _sigmoid(two * (x_new[j] + both[j] * h_new[j])) - one  # tanh
        for j in range(n):
            out[j] = new[j] + update[j] * (before[j] - new[j])


@_compiled
def gru_gradient(
    of_output: Table,
    h_gates: Table,
    hidden: Table,
    gates: Table,
    of_x_gates: Table,
    of_h_gates: Table,
    of_hidden: Table,
) -> None:
    """Fills the gradients of the three arguments of `gru`."""
    n = hidden.shape[1]
    one = np.float32(1)
    for b in range(len(hidden)):
        g, before, of_before = of_output[b], hidden[b], of_hidden[b]
        reset, update, new = gates[b, :n], gates[b, n : 2 * n], gates[b, 2 * n :]
        of_x, of_h, h_new = of_x_gates[b], of_h_gates[b], h_gates[b, 2 * n :]
        of_reset, of_update, of_inner = of_x[:n], of_x[n : 2 * n], of_x[2 * n :]
        of_h_new = of_h[2 * n :]
        for j in range(n):
            of_inner[j] = g[j] * (one - update[j]) * (one - new[j] * new[j])
        for j in range(n):
            of_reset[j] = of_inner[j] * h_new[j] * reset[j] * (one - reset[j])
        for j in range(n):
            of_update[j] = g[j] * (before[j] - new[j]) * update[j] * (one - update[j])
        for j in range(2 * n):
            of_h[j] = of_x[j]
        for j in range(n):
            of_h_new[j] = of_inner[j] * reset[j]
        for j in range(n):
            of_before[j] = g[j] * update[j]


@_compiled
def dropout(
    x: np.ndarray, seed: np.uint32, threshold: np.uint32, scale: np.float32, out: np.ndarray
) -> None:
    """`out` = `x` times `scale`, or 0 where a hash of seed and place is below `threshold`.

    The same seed drops the same entries, so the way back needs no mask. The hash is the finaliser
    of MurmurHash3, whose bits each depend on all of the place's.
    """
    for i in range(len(x)):
        # numba computes with 64 bits: each product is cut to 32 again.
        h = np.uint32(np.uint32(i) * np.uint32(0x9E3779B9) + seed)
        h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
        h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
        h = np.uint32(h ^ (h >> np.uint32(16)))
        out[i] = x[i] * scale if h >= threshold else np.float32(0)
