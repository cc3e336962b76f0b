"""What a robot among people costs a training: ``python -m bench.training.robots``.

People click in the made-up shop, and the newest tenth of their sessions is predicted. The robot
makes random clicks, all in one session over the same days.
"""

import sys
from statistics import median

import numpy as np
import polars as pl
import torch

from bench.fitting import SHOWN, trained
from bench.provenance import RESULTS, keep
from train.command import Settings, run_command
from train.data.clicks import filter_clicks, split_by_time
from train.data.filters import LONGEST_SESSION, Filters
from train.data.order import in_order, number_ids
from train.data.sessions import build_sessions
from train.data.synthetic import SyntheticConfig, generate_synthetic
from train.fit.loop import Schedule
from train.fit.training_log import TrainingLog
from train.network.hyperparameters import Hyperparameters

RESULT = RESULTS / "robots.json"
PEOPLE = 8_000
ROBOTS = (0, 500, 2_000)
"""Clicks to learn from."""
N_ITEMS = 300
EPOCHS = 5


class RobotBench(Settings):
    """Train with and without the longest session, and print and keep the figures."""


def run(_: RobotBench) -> None:
    torch.set_num_threads(1)
    rows = []
    for robot in ROBOTS:
        for longest in (0, LONGEST_SESSION):
            rows.append(measure(PEOPLE, robot, longest))
            print(rows[-1], flush=True)
    keep(RESULT, {"epochs": EPOCHS, "items": N_ITEMS, "rows": rows})


def measure(people: int, robot: int, longest: int) -> dict[str, float]:
    """Figures of the best epoch on sessions of people, and the processor seconds of an epoch."""
    shop = SyntheticConfig(n_items=N_ITEMS)
    split = split_by_time(generate_synthetic(people * 10 // 9, shop))
    log = number_ids(pl.concat([split.train, robot_in(split.train, robot)], how="diagonal"))
    filtered = filter_clicks(in_order(log), Filters(max_session_length=longest))
    train = build_sessions(filtered.clicks)
    validation = build_sessions(split.test, train.catalogue).sessions
    learnt = TrainingLog(train.sessions, validation, train.catalogue, None)
    info = trained(learnt, Hyperparameters(), Schedule(epochs=EPOCHS, patience=0)).info
    return {
        "people": people,
        "robot": robot,
        "max_session_length": longest,
        "clicks": train.sessions.n_clicks,
        "seconds_an_epoch": round(median(record.seconds for record in info.history), 1),
        **{name: round(info.metrics[name], 4) for name in SHOWN},
    }


def robot_in(clicks: pl.DataFrame, n_clicks: int) -> pl.DataFrame:
    """So many clicks on random items of the log, evenly over its days."""
    rng = np.random.default_rng(1)
    items = clicks["item_id"].cast(pl.String).unique().sort().to_numpy()
    first_ms, last_ms = clicks["timestamp_ms"].min(), clicks["timestamp_ms"].max()
    return pl.DataFrame(
        {
            "session_id": pl.Series(["robot"] * n_clicks, dtype=pl.String),
            "item_id": pl.Series(rng.choice(items, n_clicks), dtype=pl.String),
            "timestamp_ms": np.linspace(first_ms, last_ms, n_clicks).astype(np.int64),  # type: ignore[arg-type]  # integers
        }
    )


if __name__ == "__main__":
    sys.exit(run_command(RobotBench, run))
