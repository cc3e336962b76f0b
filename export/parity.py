"""Proof that the graphs compute what the model computes: the same sessions through both."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int32, Int64
from torch import Tensor

from stream.model.bundle import Parity
from stream.model.scorer import Scorer, overlap
from train.command import TrainError
from train.network.model import SessionModel

MAX_ERROR = 1e-5
"""Of a number of the state or the query; of one above 1 (an LSTM's cell has no bound) the share."""
ROUNDING = 10
"""What is allowed where PyTorch itself is further off than that: so many times its own error. A
vanilla RNN of three layers and 200 units was 1e-5 off after four clicks, on either side: gates of
size 50 are as coarse in float32, and such a cell makes small differences larger."""
TIE = 1e-5
"""Scores closer than this may change places: sums in another order differ by as much."""
RELATIVE_TIE = 2e-6
"""The same for scores above 5, where float32 itself is coarser: scores of 37 (H = 512) were
measured 2.3e-5 apart between PyTorch and ONNX Runtime, and two of them can meet."""

# 64 rows of scores are 256 MB at 1 million items, and the matrix product is at full speed.
_SESSIONS_AT_ONCE = 64
_LONGEST_SESSION = 50


class ParitySession(NamedTuple):
    """What a session clicked, and each click's number in every context field."""

    item_index: Int64[np.ndarray, "_T"]
    context: Int32[np.ndarray, "_T F"]


def check_parity(
    model: SessionModel,
    scorer: Scorer,
    sessions: Sequence[ParitySession],
    int8: Scorer | None = None,
    bias: Float32[np.ndarray, "N"] | None = None,
) -> Parity:
    """The figures of a replay of ``sessions`` in which graphs and model agreed.

    Each side carries its own state from click to click, as a worker does, so that errors add up
    over a session. The truth is the model in float64: after every click state and query must be
    within 1e-5 of it, or as near as the model's own float32 is (``ROUNDING``). The list must be the
    top-k of the model's scores for that query, plus ``bias`` where the scorer takes one, except
    that items whose scores are tied (``TIE``) may change places. Raises TrainError at the first
    click that does not. Of ``int8``, whose lists may miss an item, the overlap with ``scorer``'s
    lists is measured.
    """
    sessions = sorted(sessions, key=lambda session: len(session.item_index), reverse=True)
    exact = copy.deepcopy(model).double()
    max_error = max_error_pytorch = 0.0
    clicks = top_k_equal = 0
    overlaps = 0.0
    for first in range(0, len(sessions), _SESSIONS_AT_ONCE):
        batch = sessions[first : first + _SESSIONS_AT_ONCE]
        state = np.zeros((len(batch), scorer.state_size), np.float32)
        model_state, exact_state = (m.initial_state(len(batch)) for m in (model, exact))
        for click in range(len(batch[0].item_index)):
            going_on = [session for session in batch if len(session.item_index) > click]
            n = len(going_on)
            item_index = np.array([session.item_index[click] for session in going_on])
            context = np.array([session.context[click] for session in going_on])
            query, state = scorer.encode(item_index, context, state[:n])
            top_index, _ = scorer.rank(query, bias)
            said = torch.from_numpy(item_index), torch.from_numpy(context)
            with torch.inference_mode():
                model_query, model_state = model.encode(*said, model_state[:n])
                exact_query, exact_state = exact.encode(*said, exact_state[:n])
                scores = model.scores(torch.from_numpy(query))
                if bias is not None:
                    scores = scores + torch.from_numpy(bias)
            where = f"after click {click + 1} of a session"
            for name, found, of_model, expected in (
                ("state", state, model_state, exact_state),
                ("query", query, model_query, exact_query),
            ):
                max_error_pytorch = max(max_error_pytorch, _error(of_model.numpy(), expected))
                error = _error(found, expected)
                allowed = max(MAX_ERROR, ROUNDING * max_error_pytorch)
                if not error <= allowed:  # so that NaN fails
                    raise TrainError(
                        f"{where}, encode.onnx and the model differ by {error:.3g} in the {name} "
                        f"(at most {allowed:.3g} is allowed)"
                    )
                max_error = max(max_error, error)
            top_k_equal += _check_top_k(where, top_index, scores)
            if int8:
                overlaps += n * overlap(top_index, int8.rank(query, bias)[0])
            clicks += n
    return Parity(
        sessions=len(sessions),
        clicks=clicks,
        max_error=max_error,
        max_error_pytorch=max_error_pytorch,
        top_k_equal=top_k_equal,
        int8_overlap=overlaps / max(clicks, 1),
    )


def random_sessions(
    n_sessions: int, n_items: int, field_sizes: Sequence[int], seed: int
) -> list[ParitySession]:
    """Sessions of 1 to 50 clicks, 5 in the middle, every item of the catalogue equally likely.

    So is every number of a context field. No log is needed, and what a log hardly shows is met as
    often as the popular.
    """
    random = np.random.default_rng(seed)
    lengths = np.minimum(random.geometric(0.2, n_sessions), _LONGEST_SESSION)
    sizes = np.array(field_sizes, np.int32)
    return [
        ParitySession(
            random.integers(n_items, size=length),
            random.integers(sizes, size=(length, len(sizes)), dtype=np.int32),
        )
        for length in lengths
    ]


def _error(found: Float32[np.ndarray, "B X"], exact: Float64[Tensor, "B X"]) -> float:
    """The largest difference; of numbers above 1 as a share of them."""
    expected = exact.numpy()
    return float((np.abs(found - expected) / np.maximum(np.abs(expected), 1)).max(initial=0.0))


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
        raise TrainError(
            f"{where}, rank.onnx ranks an item in a place where the model's score differs by "
            f"{float(error.max()):.3g} (at most {TIE:g} is allowed)"
        )
    if any(len(set(row)) < len(row) for row in listed.tolist()):
        raise TrainError(f"{where}, rank.onnx lists an item twice")
    return int((listed == best_index).all(dim=1).sum())
