"""How fast the evaluator ranks a GRU's next clicks on one core.

``python -m bench.training.evaluate``.

The limit is the time of the same run's matrix products alone: of every step's queries with the
whole catalogue and of the gates, by the fastest product at hand. Both are the best of several
rounds that alternate, in the process's own seconds: waiting for a core that others use is not in
them.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is loaded, which is next

import numpy as np
import polars as pl
import torch
from pydantic import PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from bench.provenance import provenance
from bench.settings import parse
from train.data.sessions import Sessions
from train.measure.lists import count_listed
from train.measure.matmul import RowProduct
from train.measure.predictor import ModelPredictor
from train.measure.ranking import (
    batch_rows,
    rank_targets,
    session_batches,
)
from train.measure.ranks import conservative_rank
from train.network.model import ModelConfig, SessionModel

BAR = {"predictions_per_second": 8000, "share": 0.75}


class EvaluateBenchSettings(BaseSettings):
    """Measure predictions/s of a GRU with random weights on made-up sessions."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", cli_kebab_case=True, use_attribute_docstrings=True
    )
    n_items: PositiveInt = 43_097
    """Size of the catalogue; the default is Diginetica's."""
    hidden_size: PositiveInt = 100
    """Units of the GRU."""
    sessions: PositiveInt = 3000
    """Sessions to rank, of 4.9 clicks in the mean as Diginetica's."""
    rounds: PositiveInt = 5
    """Times everything is measured; the fastest counts."""
    out: Path = Path("bench/results/evaluate.json")
    """Where the figures go."""


def main(settings: EvaluateBenchSettings) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config = ModelConfig(n_items=settings.n_items, hidden_size=settings.hidden_size)
    model = SessionModel(config).eval()
    sessions = made_up_sessions(settings.sessions, settings.n_items)
    predictor = ModelPredictor(model)
    listed = np.zeros(settings.n_items, dtype=np.int64)
    rows = step_rows(sessions, settings.n_items)
    measured: dict[str, Callable[[], object]] = {
        "ranked": lambda: rank_targets(predictor, sessions, settings.n_items),
        "ranked_with_lists": lambda: rank_targets(predictor, sessions, settings.n_items, listed),
        **products(model, rows),
        **counting(rows, settings.n_items),
    }
    seconds = dict.fromkeys(measured, float("inf"))
    for _ in range(settings.rounds):
        for name, run in measured.items():
            begin = time.process_time()
            run()
            seconds[name] = min(seconds[name], time.process_time() - begin)
    n_predictions = sum(rows)
    per_second = {name: n_predictions / taken for name, taken in seconds.items()}
    limit = max(per_second[name] for name in per_second if name.startswith("product"))
    result = {
        **provenance(),
        "torch": torch.__version__,
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
    settings.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def made_up_sessions(n_sessions: int, n_items: int) -> Sessions:
    """Sessions of 2 clicks and more, geometric, on items of equal chance."""
    rng = np.random.default_rng(1)
    lengths = 1 + rng.geometric(1 / 3.9, n_sessions)
    n_clicks = int(lengths.sum())
    return Sessions(
        item_index=rng.integers(0, n_items, n_clicks),
        timestamp_ms=np.arange(n_clicks),
        start=np.concatenate([[0], np.cumsum(lengths)]),
        session_id=pl.Series(np.arange(n_sessions).astype(str)),
        context=np.zeros((n_clicks, 0), dtype=np.int32),
        target_weight=np.ones(n_clicks, dtype=np.float32),
    )


def step_rows(sessions: Sessions, n_items: int) -> list[int]:
    """Rows of every step the evaluator will take."""
    batches = session_batches(sessions, batch_rows(n_items))
    return [len(prefix) for _, batch in batches for prefix in batch.steps()]


def products(model: SessionModel, rows: list[int]) -> dict[str, Callable[[], object]]:
    """The matrix products of these steps, and of the gates, by three libraries."""
    table, bias = model.item_embedding.detach(), model.output_bias.detach()
    query, size = torch.randn(max(rows), table.shape[1]), table.shape[1]
    gates = torch.randn(3 * size, size)
    scores = torch.empty(max(rows), len(table))
    packed, packed_gates = RowProduct(table, bias), RowProduct(gates, torch.zeros(3 * size))

    def onednn() -> None:
        with torch.inference_mode():
            for b in rows:
                packed_gates(query[:b])
                packed_gates(query[:b])
                packed(query[:b])

    def mkl() -> None:
        with torch.inference_mode():
            for b in rows:
                torch.mm(query[:b], gates.T)
                torch.mm(query[:b], gates.T)
                torch.mm(query[:b], table.T, out=scores[:b])

    def openblas() -> None:
        for b in rows:
            np.matmul(query[:b].numpy(), gates.numpy().T)
            np.matmul(query[:b].numpy(), gates.numpy().T)
            np.matmul(query[:b].numpy(), table.numpy().T, out=scores[:b].numpy())

    return {"product_onednn": onednn, "product_mkl": mkl, "product_openblas": openblas}


def counting(rows: list[int], n_items: int) -> dict[str, Callable[[], object]]:
    """What is done with the scores of these steps."""
    rng = np.random.default_rng(2)
    scores = rng.standard_normal((max(rows), n_items), dtype=np.float32)
    target = rng.integers(0, n_items, max(rows))
    listed = np.zeros(n_items, dtype=np.int64)

    def count() -> None:
        for b in rows:
            conservative_rank(scores[:b], target[:b])

    def lists() -> None:
        for b in rows:
            count_listed(scores[:b], listed)

    return {"count": count, "lists": lists}


if __name__ == "__main__":
    main(parse(EvaluateBenchSettings))
