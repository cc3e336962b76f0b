"""How fast a training step is, compared with its own matrix products: ``bench.training.speed``.

The setting is that of the official GRU4Rec on Diginetica: 43,097 items, H = 512, 128 sessions in
parallel, 2,048 negatives, shared embedding, BPR-max, on one core. Clicks are made up; the cost of a
step does not depend on which items they are. The limit alternates with the training, in the same
process, so that a busy machine slows both.
"""

import json
import sys
import time
from collections.abc import Callable
from statistics import mean, median
from typing import Literal

import numpy as np
import polars as pl
import torch
from pydantic import PositiveFloat, PositiveInt
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

from bench.measuring import in_child
from bench.provenance import RESULTS, keep
from train.baselines.popularity import item_support
from train.command import Settings, TrainError, run_command
from train.data.sessions import Sessions
from train.network.hyperparameters import Hyperparameters
from train.network.trainer import Trainer, computes_bfloat16

RESULT = RESULTS / "training.json"
STAGES = ("candidates", "forward", "loss", "backward", "update")
OFFICIAL = {
    "hidden_size": 512,
    "embedding": "shared",
    "batch_size": 128,
    "bptt": 1,
    "n_negatives": 2048,
    "sample_alpha": 0.3,
    "dropout_embedding": 0.5,
    "dropout_hidden": 0.3,
    "learning_rate": 0.05,
    "momentum": 0.15,
    "bpreg": 0.9,
    "elu": 1.0,
}
N_ITEMS = 43_097
CATALOGUES = (10_000, 100_000, 1_000_000)


class TrainingBench(Settings):
    """Measure a training step, and print and keep its figures."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where to train; only a CPU's figures are kept."""
    rounds: PositiveInt = 7
    """Times that limit and training are measured in turn."""
    seconds: PositiveFloat = 4.0
    """Length of the training in a round."""
    catalogue: PositiveInt | None = None
    """Measure one step at this many items and H = 128 instead, and print its time and memory."""


def run(settings: TrainingBench) -> None:
    """Print the figures, and keep those of a CPU in bench/results/training.json."""
    torch.set_num_threads(1)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise TrainError("--device: PyTorch finds no cuda device on this machine: use cpu")
    if settings.catalogue is not None:
        print(json.dumps(measure_catalogue(settings.catalogue, settings.device)))
        return
    result: dict[str, object] = {"setting": OFFICIAL | {"items": N_ITEMS}}
    for precision in ("float32", "bfloat16"):
        if precision == "bfloat16" and not computes_bfloat16(settings.device):
            print("bfloat16: this device does not compute in it; nothing to measure")
            continue
        result[precision] = measure(precision, settings)
        print(precision, json.dumps(result[precision]))
    result["catalogue"] = [measure_catalogue(n_items, settings.device) for n_items in CATALOGUES]
    print("catalogue", json.dumps(result["catalogue"]))
    if settings.device == "cpu":
        keep(RESULT, result)


def measure(precision: str, settings: TrainingBench) -> dict[str, object]:
    """Medians over the rounds, and a step's stages in milliseconds."""
    sessions = popular_sessions(N_ITEMS, n_clicks=2_000_000)
    trainer = a_trainer(sessions, N_ITEMS, settings.device, precision=precision)
    train_for(trainer, sessions, 1, settings.seconds / 2)  # compiles, allocates, warms up
    n_candidates = mean_candidates(trainer, sessions)
    rates, limits = [], []
    for epoch in range(2, 2 + settings.rounds):
        limit_s = gemm_seconds(trainer.hyperparameters, n_candidates, precision, settings.device)
        limits.append(trainer.hyperparameters.batch_size / limit_s)
        rates.append(train_for(trainer, sessions, epoch, settings.seconds))
    shares = [rate / limit for rate, limit in zip(rates, limits, strict=True)]
    return {
        "clicks_per_second": round(median(rates)),
        "gemm_limit_clicks_per_second": round(median(limits)),
        "share": round(median(shares), 3),
        "shares": [round(share, 3) for share in shares],
        "candidates": round(n_candidates),
        "stages_ms": stages_ms(trainer, sessions),
    }


def a_trainer(sessions: Sessions, n_items: int, device: str, **change: object) -> Trainer:
    hyperparameters = Hyperparameters.model_validate(OFFICIAL | change)
    return Trainer(hyperparameters, item_support(sessions, n_items), device=device)


def popular_sessions(n_items: int, n_clicks: int) -> Sessions:
    """Sessions of 5 clicks on items about as unevenly popular as a shop's."""
    share = 1 / (np.arange(n_items) + 20.0)
    start = np.arange(0, n_clicks + 1, 5)
    return Sessions(
        item_index=np.random.default_rng(1).choice(n_items, n_clicks, p=share / share.sum()),
        timestamp_ms=np.arange(n_clicks),
        start=start,
        session_id=pl.Series(start[:-1]).cast(pl.String),
        context=np.zeros((n_clicks, 0), dtype=np.int32),
        target_weight=np.ones(n_clicks, dtype=np.float32),
    )


def train_for(trainer: Trainer, sessions: Sessions, epoch: int, seconds: float) -> float:
    result = trainer.train_epoch(sessions, epoch, deadline=time.monotonic() + seconds)
    return result.clicks / result.seconds


def mean_candidates(trainer: Trainer, sessions: Sessions) -> float:
    """Distinct items that a step of this trainer scores, on average."""
    h = trainer.hyperparameters
    rng = np.random.default_rng(2)
    negatives = trainer.sampler.blocks(h.n_negatives, rng)
    return mean(
        len(np.unique(np.concatenate([rng.choice(sessions.item_index, h.batch_size), drawn])))
        for drawn, _ in zip(negatives, range(50), strict=False)
    )


def gemm_seconds(h: Hyperparameters, n_candidates: float, precision: str, device: str) -> float:
    """The matrix products of one step, none computed twice, one after the other.

    Input side of the gates, forward and both gradients; hidden side without the gradient of the
    earlier state, as none flows back; scores, forward and both gradients.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    b, width, c = h.batch_size, h.hidden_size, round(n_candidates)
    x, query = (torch.randn(b, width, dtype=dtype, device=device) for _ in range(2))
    weight = torch.randn(3 * width, width, dtype=dtype, device=device)
    gates = torch.randn(b, 3 * width, dtype=dtype, device=device)
    rows = torch.randn(c, width, dtype=dtype, device=device)
    scores = torch.randn(b, c, dtype=dtype, device=device)
    products: list[tuple[int, Callable[[], torch.Tensor]]] = [
        (2, lambda: x @ weight.T),
        (1, lambda: gates @ weight),
        (2, lambda: gates.T @ x),
        (1, lambda: query @ rows.T),
        (1, lambda: scores @ rows),
        (1, lambda: scores.T @ query),
    ]
    timers = [
        (times, Timer("product()", globals={"product": product})) for times, product in products
    ]
    return sum(times * timer.blocked_autorange().median for times, timer in timers)


def stages_ms(trainer: Trainer, sessions: Sessions) -> dict[str, float]:
    """Where a step's time goes; the profiler itself makes it a little slower."""
    steps: list[int] = []
    with profile(activities=[ProfilerActivity.CPU]) as found:
        deadline = time.monotonic() + 2
        trainer.train_epoch(
            sessions, 99, deadline=deadline, on_step=lambda clicks, loss: steps.append(clicks)
        )
    total = {event.key: event.cpu_time_total for event in found.key_averages()}
    return {stage: round(total[stage] / 1000 / len(steps), 2) for stage in STAGES}


def measure_catalogue(n_items: int, device: str) -> dict[str, object]:
    """A step's time and the process's memory at one size of the catalogue."""
    rate, spent = in_child(catalogue_rate, n_items, device)
    return {
        "items": n_items,
        "hidden_size": 128,
        "clicks_per_second": rate,
        "peak_memory_gb": round(spent.peak_mib / 1024, 2),
    }


def catalogue_rate(n_items: int, device: str) -> int:
    """Clicks per second at one size of the catalogue, the median of 5 rounds."""
    torch.set_num_threads(1)
    sessions = popular_sessions(n_items, n_clicks=max(500_000, 2 * n_items))
    trainer = a_trainer(sessions, n_items, device, hidden_size=128)
    train_for(trainer, sessions, 1, 2)
    return round(median(train_for(trainer, sessions, epoch, 2) for epoch in range(2, 7)))


if __name__ == "__main__":
    sys.exit(run_command(TrainingBench, run))
