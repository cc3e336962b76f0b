"""How often every item was clicked in training, which orders what a method leaves equal."""

import numpy as np
from jaxtyping import Float32, Float64, Int64

from train.data.sessions import Sessions


def item_support(sessions: Sessions, n_items: int) -> Int64[np.ndarray, "N"]:
    """Clicks on every item."""
    return np.bincount(sessions.item_index, minlength=n_items)


def tie_break(support: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N"]:
    """Support scaled below 1, so that it orders only what counts leave equal."""
    return np.asarray(support / (support.max(initial=0) + 1.0))


def support_base(sessions: Sessions, n_items: int) -> Float32[np.ndarray, "N"]:
    """The same far below 1, for votes that are not whole numbers."""
    return (1e-6 * tie_break(item_support(sessions, n_items))).astype(np.float32)
