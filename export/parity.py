"""Proof that the graphs compute what the model computes: the same sessions through both."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from stream.bundle import Parity
from stream.scorer import Scorer
from train.model import GRU4Rec

MAX_HIDDEN_ERROR = 1e-5
TIE = 1e-5
"""Scores closer than this may change places: sums in another order differ by as much."""
RELATIVE_TIE = 2e-6
"""The same for scores above 5, where float32 itself is coarser: scores of 37 (H = 512) were
measured 2.3e-5 apart between PyTorch and ONNX Runtime, and two of them can meet."""

# 64 rows of scores are 256 MB at 1 million items, and the matrix product is at full speed.
_SESSIONS_AT_ONCE = 64
_LONGEST_SESSION = 50


class ParityError(Exception):
    """One sentence: where graph and model part, by how much, and what is allowed."""


def check_parity(
    model: GRU4Rec, scorer: Scorer, sessions: Sequence[Int64[np.ndarray, "_T"]]
) -> Parity:
    """The figures of a replay of ``sessions`` (item indices) in which graphs and model agreed.

    Each side carries its own hidden state from click to click, as a worker does, so that errors
    add up over a session. After every click hidden must agree within 1e-5, and so must the top-k,
    except that items may change places where the model's scores are tied (``TIE``).
    Raises ParityError at the first click that does not.
    """
    sessions = sorted(sessions, key=len, reverse=True)
    max_abs_hidden = 0.0
    clicks = top_k_equal = 0
    for first in range(0, len(sessions), _SESSIONS_AT_ONCE):
        batch = sessions[first : first + _SESSIONS_AT_ONCE]
        hidden = np.zeros((scorer.n_layers, len(batch), scorer.hidden_size), np.float32)
        model_hidden = model.initial_hidden(len(batch))
        for click in range(len(batch[0])):
            going_on = sum(len(session) > click for session in batch)
            item_index = np.array([session[click] for session in batch[:going_on]])
            hidden = scorer.encode(item_index, np.ascontiguousarray(hidden[:, :going_on]))
            top_index, _ = scorer.rank(hidden[-1])
            with torch.inference_mode():
                model_hidden = model.encode(
                    torch.from_numpy(item_index), model_hidden[:, :going_on]
                )
                scores = model.scores(model_hidden[-1])
            where = f"after click {click + 1} of a session"
            error = _check_hidden(where, hidden, model_hidden.numpy())
            max_abs_hidden = max(max_abs_hidden, error)
            top_k_equal += _check_top_k(where, top_index, scores)
            clicks += going_on
    return Parity(
        sessions=len(sessions),
        clicks=clicks,
        max_abs_hidden=max_abs_hidden,
        top_k_equal=top_k_equal,
    )


def random_sessions(n_sessions: int, n_items: int, seed: int) -> list[Int64[np.ndarray, "_T"]]:
    """Sessions of 1 to 50 clicks, 5 in the middle, every item of the catalogue equally likely.

    No log is needed, and items that a log hardly shows are met as often as the popular ones.
    """
    random = np.random.default_rng(seed)
    lengths = np.minimum(random.geometric(0.2, n_sessions), _LONGEST_SESSION)
    return [random.integers(n_items, size=length) for length in lengths]


def _check_hidden(
    where: str, hidden: Float32[np.ndarray, "L B H"], expected: Float32[np.ndarray, "L B H"]
) -> float:
    error = float(np.abs(hidden - expected).max())
    if not error <= MAX_HIDDEN_ERROR:  # so that NaN fails
        raise ParityError(
            f"{where}, encode.onnx and the model differ by {error:.3g} in hidden, "
            f"allowed {MAX_HIDDEN_ERROR:g}"
        )
    return error


def _check_top_k(
    where: str, top_index: Int32[np.ndarray, "B K"], scores: Float[Tensor, "B N"]
) -> int:
    """Number of rows whose list is the model's own, position by position."""
    listed = torch.from_numpy(top_index.astype(np.int64))
    best_scores, best_index = scores.topk(listed.shape[1])
    # By the model's own scores: what stands at place n must be as good as the nth best.
    error = (scores.gather(1, listed) - best_scores).abs()
    tie = (best_scores.abs() * RELATIVE_TIE).clamp(min=TIE)
    if not bool((error < tie).all()):
        raise ParityError(
            f"{where}, rank.onnx lists an item whose score in the model is "
            f"{float(error.max()):.3g} from that place's score, allowed {TIE:g}"
        )
    if any(len(set(row)) < len(row) for row in listed.tolist()):
        raise ParityError(f"{where}, rank.onnx lists an item twice")
    return int((listed == best_index).all(dim=1).sum())
