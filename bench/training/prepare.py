"""What it takes to make a folder of Parquet files ready for training.

``python -m bench.training.prepare``.

The folder is made up: visitors' clicks in order of time, as in a topic, in files of about two
million clicks. A visitor is a name of about 40 digits, an item one of a million by a Zipf law;
visits have 2 to 50 clicks by a power law, about 15 s apart. Existing files are kept, so a run that
was killed resumes. Reading, cutting sessions, examining, splitting, filtering and indexing are
done as in `python -m train fit`, by a process of their own whose wall time and peak memory are
measured.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import PositiveInt

from bench.measuring import in_child, timed
from bench.provenance import RESULTS, keep
from train.command import Settings, run_command
from train.data.clicks import Filters, filter_clicks, read_clicks, split_by_time
from train.data.columns import Columns
from train.data.health import examine
from train.data.sessions import Indexed, build_sessions
from train.folders import replacing

BAR = {"seconds": 480, "peak_gib": 12}
CLICKS_PER_FILE = 2_000_000
LENGTHS = np.arange(2, 51)
LENGTH_SHARES = LENGTHS**-2.15 / (LENGTHS**-2.15).sum()
"""Five clicks on average."""
CLICKS_PER_VISITOR = 8
PERIOD_MS = 60 * 86_400_000
FIRST_MS = 1_704_067_200_000
IDLE_TIMEOUT_S = 1800
LONGEST_DWELL_MS = 600_000
COLUMNS = Columns(visitor="visitor_id")


class PrepareSettings(Settings):
    """Measure what it takes to prepare a large log for training."""

    clicks: PositiveInt = 100_000_000
    """Clicks in the folder, within a few per cent."""
    items: PositiveInt = 1_000_000
    """Items of the catalogue."""
    folder: Path = Path("build/prepare")
    """Where the log is made; one log per folder."""
    keep: bool = False
    """Keep the folder; 100 million clicks take 3.3 GB."""
    out: Path = RESULTS / "prepare.json"
    """File of the figures."""


def run(settings: PrepareSettings) -> None:
    n_files = -(-settings.clicks // CLICKS_PER_FILE)
    settings.folder.mkdir(parents=True, exist_ok=True)
    for number in range(n_files):
        path = settings.folder / f"{number:04d}.parquet"
        if not path.exists():
            clicks = make_file(number, n_files, settings.clicks, settings.items)
            with replacing(path) as partial:
                clicks.write_parquet(partial)
            print(f"{path}: {len(clicks):,} clicks", file=sys.stderr)
    measured, spent = in_child(measure, settings.folder)
    on_disk = sum(file.stat().st_size for file in settings.folder.glob("*.parquet"))
    result = {
        "bar": BAR,
        "log": {"files": n_files, "gib": round(on_disk / 2**30, 2)},
        "seconds": spent.seconds,
        "cpu_seconds": spent.cpu_seconds,
        "load_average": round(os.getloadavg()[1], 1),
        "peak_gib": round(spent.peak_mib / 1024, 2),
        **measured,
    }
    keep(settings.out, result)
    print(json.dumps(result, indent=1))
    if not settings.keep:
        shutil.rmtree(settings.folder)


def measure(path: Path) -> dict[str, Any]:
    """Prepare a log; the seconds of each step, and the size of the result."""
    seconds: dict[str, float] = {}
    with timed(seconds, "read_and_cut"):
        log = read_clicks(path, COLUMNS, idle_timeout_s=IDLE_TIMEOUT_S, keep=())
    with timed(seconds, "examine"):
        examine(log.clicks, rejected=log.rejected, visitor=log.visitor)
    sizes = {"clicks": len(log.clicks), "sessions": log.clicks["session_id"].n_unique()}
    with timed(seconds, "split"):
        older, newer = split_by_time(log.clicks, days=1)
    del log
    with timed(seconds, "filter"):
        clicks = filter_clicks(older, Filters(min_item_support=5)).clicks
    del older
    with timed(seconds, "index"):
        train = build_sessions(clicks)
        validation = build_sessions(newer, train.catalogue)
    return sizes | {
        "parts_seconds": seconds,
        "train": _size(train) | {"items": len(train.catalogue)},
        "validation": _size(validation),
    }


def _size(log: Indexed) -> dict[str, int]:
    return {"clicks": log.sessions.n_clicks, "sessions": len(log.sessions)}


def make_file(number: int, n_files: int, n_clicks: int, n_items: int) -> pl.DataFrame:
    """The clicks of one stretch of time: of the visits that begin in it, and in the one before."""
    stretch_ms = PERIOD_MS // n_files
    begin_ms = FIRST_MS + number * stretch_ms
    begun = range(max(0, number - 1), number + 1)
    visits = pl.concat(_make_visits(stretch, n_files, n_clicks, n_items) for stretch in begun)
    in_stretch = pl.col("timestamp_ms").is_between(begin_ms, begin_ms + stretch_ms, closed="left")
    # 64 bits of hash twice, about as long as a UUID: a prefix says nothing about the rest
    halves = [pl.col("visitor").hash(seed).cast(pl.String) for seed in (1, 2)]
    clicks = visits.filter(in_stretch).select(
        pl.concat_str(halves).alias("visitor_id"),
        pl.format("item-{}", "item").alias("item_id"),
        "timestamp_ms",
        pl.lit("view").alias("event_type"),
    )
    return clicks.sort("timestamp_ms", maintain_order=True)


def _make_visits(number: int, n_files: int, n_clicks: int, n_items: int) -> pl.DataFrame:
    rng = np.random.default_rng([0, number])
    stretch_ms = PERIOD_MS // n_files
    n_visits = round(n_clicks / n_files / (LENGTHS @ LENGTH_SHARES))
    length = rng.choice(LENGTHS, n_visits, p=LENGTH_SHARES)
    visitor = rng.integers(0, n_clicks // CLICKS_PER_VISITOR, n_visits)
    begin_ms = FIRST_MS + number * stretch_ms + rng.integers(0, stretch_ms, n_visits)
    total = int(length.sum())
    dwell_ms = np.clip(rng.lognormal(np.log(15_000), 1.0, total), 1_000, LONGEST_DWELL_MS)
    start = np.cumsum(length) - length
    since = np.cumsum(dwell_ms.astype(np.int64))
    at_ms = np.repeat(begin_ms - since[start], length) + since
    # Zipf with exponent 1: the inverse of a distribution that is even in log(rank)
    item = np.exp(rng.random(total) * np.log(n_items)).astype(np.int64)
    return pl.DataFrame(
        {"visitor": np.repeat(visitor, length), "item": item, "timestamp_ms": at_ms}
    )


if __name__ == "__main__":
    sys.exit(run_command(PrepareSettings, run))
