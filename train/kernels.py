"""Compiled loops of a training step, each one pass over memory that PyTorch has no operation for.

One function a case, as LLVM vectorises a loop without branches; float32 throughout, as a single
float64 constant halves the speed. `row` are distinct; `gradient[u]` belongs to `row[u]`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

Table = np.ndarray  # [N, H] of float32; H is 1 for a vector

_compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"}
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
    decay: np.float32,
    epsilon: np.float32,
) -> None:
    """Adagrad without momentum."""
    keep = np.float32(1) - lr * decay
    for u in range(len(row)):
        w, a, g = weight[row[u]], squares[row[u]], gradient[u]
        for j in range(len(g)):
            a[j] += g[j] * g[j]
            w[j] = keep * w[j] - lr * g[j] / (math.sqrt(a[j]) + epsilon)


@_compiled
def adagrad_momentum(
    weight: Table,
    velocity: Table,
    squares: Table,
    row: np.ndarray,
    gradient: Table,
    lr: np.float32,
    momentum: np.float32,
    decay: np.float32,
    epsilon: np.float32,
) -> None:
    """Adagrad with Nesterov momentum."""
    keep = np.float32(1) - lr * decay
    for u in range(len(row)):
        w, v, a, g = weight[row[u]], velocity[row[u]], squares[row[u]], gradient[u]
        for j in range(len(g)):
            a[j] += g[j] * g[j]
            change = -lr * g[j] / (math.sqrt(a[j]) + epsilon)
            v[j] = momentum * v[j] + change
            w[j] = keep * w[j] + change + momentum * v[j]


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
    decay: np.float32,
    epsilon: np.float32,
) -> None:
    """AdamW; `of_first` and `of_second` correct the bias of the moments."""
    one = np.float32(1)
    for u in range(len(row)):
        w, m, s, g = weight[row[u]], first[row[u]], squares[row[u]], gradient[u]
        for j in range(len(g)):
            m[j] = keep_first * m[j] + (one - keep_first) * g[j]
            s[j] = keep_second * s[j] + (one - keep_second) * g[j] * g[j]
            change = m[j] * of_first / (math.sqrt(s[j] * of_second) + epsilon)
            w[j] -= lr * (change + decay * w[j])


@_compiled
def sgd(
    weight: Table,
    velocity: Table,
    row: np.ndarray,
    gradient: Table,
    lr: np.float32,
    momentum: np.float32,
    decay: np.float32,
) -> None:
    """Gradient descent."""
    keep = np.float32(1) - lr * decay
    for u in range(len(row)):
        w, g = weight[row[u]], gradient[u]
        for j in range(len(g)):
            w[j] = keep * w[j] - lr * g[j]


@_compiled
def sgd_momentum(
    weight: Table,
    velocity: Table,
    row: np.ndarray,
    gradient: Table,
    lr: np.float32,
    momentum: np.float32,
    decay: np.float32,
) -> None:
    """Gradient descent with Nesterov momentum."""
    keep = np.float32(1) - lr * decay
    for u in range(len(row)):
        w, v, g = weight[row[u]], velocity[row[u]], gradient[u]
        for j in range(len(g)):
            v[j] = momentum * v[j] - lr * g[j]
            w[j] = keep * w[j] - lr * g[j] + momentum * v[j]


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
