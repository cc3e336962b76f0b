"""What it takes to make a folder of Parquet files ready for training.

``python -m bench.training.prepare``.

The folder is made up: visitors' clicks in order of time, as a topic gives them, in files of about
two million clicks. A visitor is a name of 36 to 40 digits, an item one of a million by a Zipf law;
visits have 2 to 50 clicks by a power law, some 15 s apart. Files that exist are kept, so a run that
was killed goes on. Reading, cutting sessions, splitting, filtering and indexing take a process of
their own, as `python -m train fit` does them, whose wall time and peak memory are measured.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int64
from pydantic import PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from bench.provenance import provenance
from bench.settings import parse
from train.data.clicks import Columns, Filters, filter_clicks, read_clicks, split_by_time
from train.data.sessions import build_sessions

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


class PrepareSettings(BaseSettings):
    """Measure what it takes to prepare a large log for training."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        use_attribute_docstrings=True,
    )
    clicks: PositiveInt = 100_000_000
    """Clicks in the folder, within a few per cent."""
    items: PositiveInt = 1_000_000
    """Items of the catalogue."""
    folder: Path = Path("build/prepare")
    """Where the log is made; one log a folder."""
    keep: bool = False
    """Leave the folder; 100 million clicks take 3.3 GB."""
    out: Path = Path("bench/results/prepare.json")
    """Where the figures go."""


def main(settings: PrepareSettings) -> None:
    n_files = -(-settings.clicks // CLICKS_PER_FILE)
    settings.folder.mkdir(parents=True, exist_ok=True)
    for number in range(n_files):
        path = settings.folder / f"{number:04d}.parquet"
        if not path.exists():
            begun = path.with_suffix(".begun")
            clicks = make_file(number, n_files, settings.clicks, settings.items)
            clicks.write_parquet(begun)
            begun.rename(path)
            print(f"{path}: {len(clicks):,} clicks", file=sys.stderr)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "bench.training.prepare", "measure", str(settings.folder)],
        stdout=subprocess.PIPE,
        check=True,
    )
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    on_disk = sum(file.stat().st_size for file in settings.folder.glob("*.parquet"))
    result = {
        **provenance(),
        "polars": version("polars"),
        "bar": BAR,
        "log": {"files": n_files, "gib": round(on_disk / 2**30, 2)},
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "load_average": round(os.getloadavg()[1], 1),
        "peak_gib": round(used.ru_maxrss / 2**20, 2),
        **json.loads(done.stdout),
    }
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if not settings.keep:
        shutil.rmtree(settings.folder)


def measure(folder: Path) -> dict[str, Any]:
    """Prepare the log; the seconds of every part, and what came of it."""
    seconds: dict[str, float] = {}
    with timed(seconds, "read_and_cut"):
        log = read_clicks(folder, COLUMNS, idle_timeout_s=IDLE_TIMEOUT_S, keep=())
    n_clicks, n_sessions = len(log.clicks), log.clicks["session_id"].n_unique()
    with timed(seconds, "split"):
        older, newer = split_by_time(log.clicks, days=1)
    del log
    with timed(seconds, "filter"):
        clicks = filter_clicks(older, Filters(min_item_support=5)).clicks
    del older
    with timed(seconds, "index"):
        train = build_sessions(clicks)
        validation = build_sessions(newer, train.catalogue)
    return {
        "clicks": n_clicks,
        "sessions": n_sessions,
        "parts_seconds": seconds,
        "train": {
            "clicks": train.sessions.n_clicks,
            "sessions": len(train.sessions),
            "items": len(train.catalogue),
        },
        "validation": {
            "clicks": validation.sessions.n_clicks,
            "sessions": len(validation.sessions),
        },
    }


def make_file(number: int, n_files: int, n_clicks: int, n_items: int) -> pl.DataFrame:
    """The clicks of one stretch of time: of the visits that begin in it, and in the one before."""
    stretch_ms = PERIOD_MS // n_files
    end_ms = FIRST_MS + (number + 1) * stretch_ms
    visits = [
        _make_visits(begun, n_files, n_clicks, n_items)
        for begun in (number - 1, number)
        if begun >= 0
    ]
    clicks = pl.concat(visits).filter(
        pl.col("timestamp_ms").is_between(end_ms - stretch_ms, end_ms, closed="left")
    )
    # 64 bits of hash twice, as long as a UUID; nothing of a name can be guessed from another
    halves = [
        pl.Series(hashed).cast(pl.String)
        for hashed in (_mix(clicks["visitor"].to_numpy(), 1), _mix(clicks["visitor"].to_numpy(), 2))
    ]
    name = pl.select(pl.concat_str(halves)).to_series()
    return (
        clicks.with_columns(
            visitor_id=name, item_id=pl.format("item-{}", "item"), event_type=pl.lit("view")
        )
        .select("visitor_id", "item_id", "timestamp_ms", "event_type")
        .sort("timestamp_ms", maintain_order=True)
    )


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


def _mix(values: Int64[np.ndarray, "T"], seed: int) -> np.ndarray:
    """64 well mixed bits of every value (the end of splitmix64)."""
    mixed = values.astype(np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - began, 1)
    print(f"{name}: {seconds[name]} s", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        main(parse(PrepareSettings))
