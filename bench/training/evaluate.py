"""How fast the evaluator ranks a GRU's next clicks on one core: ``bench.training.evaluate``.

The limit is the time of the same run's matrix products alone, those of every step's queries with
the whole catalogue and those of the gates, by the fastest library available. Both are the best of
several alternating rounds, in the process's own seconds, without those in which it waited for a
core.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is loaded, which is next

import numpy as np
import torch
from pydantic import PositiveInt

from bench.fitting import made_up_sessions
from bench.provenance import RESULTS, keep
from train.command import Settings, run_command
from train.data.sessions import Sessions
from train.measure.lists import count_listed
from train.measure.predictor import ModelPredictor, RowProduct
from train.measure.ranking import batch_rows, conservative_rank, rank_targets, session_batches
from train.network.model import ModelConfig, SessionModel

BAR = {"predictions_per_second": 8000, "share": 0.75}


class EvaluateBenchSettings(Settings):
    """Measure predictions/s of a GRU with random weights on made-up sessions."""

    n_items: PositiveInt = 43_097
    """Size of the catalogue; the default is Diginetica's."""
    hidden_size: PositiveInt = 100
    """Units of the GRU."""
    sessions: PositiveInt = 3000
    """Sessions to rank, of 4.9 clicks on average, as Diginetica's."""
    rounds: PositiveInt = 5
    """Times everything is measured; the fastest counts."""
    out: Path = RESULTS / "evaluate.json"
    """File of the figures."""


def run(settings: EvaluateBenchSettings) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config = ModelConfig(n_items=settings.n_items, hidden_size=settings.hidden_size)
    model = SessionModel(config).eval()
    sessions = random_sessions(settings.sessions, settings.n_items)
    predictor = ModelPredictor(model)
    listed = np.zeros(settings.n_items, dtype=np.int64)
    batches = session_batches(sessions, batch_rows(settings.n_items))
    rows = [len(prefix) for _, batch in batches for prefix in batch.steps()]  # of every step
    measured: dict[str, Callable[[], object]] = {
        "ranked": lambda: rank_targets(predictor, sessions, settings.n_items),
        "ranked_with_lists": lambda: rank_targets(predictor, sessions, settings.n_items, listed),
        **products(model, rows),
        **counting(rows, settings.n_items),
    }
    seconds = dict.fromkeys(measured, float("inf"))
    for _ in range(settings.rounds):
        for name, call in measured.items():
            begin = time.process_time()
            call()
            seconds[name] = min(seconds[name], time.process_time() - begin)
    n_predictions = sum(rows)
    per_second = {name: n_predictions / taken for name, taken in seconds.items()}
    limit = max(per_second[name] for name in per_second if name.startswith("product"))
    result = {
        "bar": BAR,
        "n_items": settings.n_items,
        "hidden_size": settings.hidden_size,
        "predictions": n_predictions,
        "predictions_per_second": round(per_second["ranked"]),
        "gemm_limit_predictions_per_second": round(limit),
        "share": round(per_second["ranked"] / limit, 3),
        "with_lists_predictions_per_second": round(per_second["ranked_with_lists"]),
        "us_a_prediction": {n: round(1e6 * s / n_predictions, 1) for n, s in seconds.items()},
    }
    keep(settings.out, result)
    print(json.dumps(result, indent=1))


def random_sessions(n_sessions: int, n_items: int) -> Sessions:
    """Sessions of 2 or more clicks, geometric, on items of equal probability."""
    rng = np.random.default_rng(1)
    lengths = 1 + rng.geometric(1 / 3.9, n_sessions)
    return made_up_sessions(rng.integers(0, n_items, int(lengths.sum())), lengths)


def products(model: SessionModel, rows: list[int]) -> dict[str, Callable[[], object]]:
    """The matrix products of these steps, and of the gates, by three libraries."""
    table, bias = model.item_embedding.detach(), model.output_bias.detach()
    query, size = torch.randn(max(rows), table.shape[1]), table.shape[1]
    gates, scores = torch.randn(3 * size, size), torch.empty(max(rows), len(table))
    packed, packed_gates = RowProduct(table, bias), RowProduct(gates, torch.zeros(3 * size))
    q, g, t, out = (tensor.numpy() for tensor in (query, gates, table, scores))
    one_step: dict[str, tuple[Callable[[int], object], Callable[[int], object]]] = {
        "onednn": (lambda b: packed_gates(query[:b]), lambda b: packed(query[:b])),
        "mkl": (
            lambda b: torch.mm(query[:b], gates.T),
            lambda b: torch.mm(query[:b], table.T, out=scores[:b]),
        ),
        "openblas": (
            lambda b: np.matmul(q[:b], g.T),
            lambda b: np.matmul(q[:b], t.T, out=out[:b]),
        ),
    }

    def repeated(gate: Callable[[int], object], score: Callable[[int], object]) -> None:
        with torch.inference_mode():
            for b in rows:
                gate(b)
                gate(b)
                score(b)

    return {f"product_{name}": partial(repeated, *step) for name, step in one_step.items()}


def counting(rows: list[int], n_items: int) -> dict[str, Callable[[], object]]:
    """What is done with the scores of these steps."""
    rng = np.random.default_rng(2)
    scores = rng.standard_normal((max(rows), n_items), dtype=np.float32)
    target = rng.integers(0, n_items, max(rows))
    listed = np.zeros(n_items, dtype=np.int64)

    def lists() -> None:
        for b in rows:
            count_listed(scores[:b], listed)

    return {
        "count": lambda: [conservative_rank(scores[:b], target[:b]) for b in rows],
        "lists": lists,
    }


if __name__ == "__main__":
    sys.exit(run_command(EvaluateBenchSettings, run))
