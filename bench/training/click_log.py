"""What a million clicks cost to make, read, filter and split.

``python -m bench.training.click_log``.

Each format is measured in a process of its own, so that its peak memory is its own.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from bench.provenance import provenance
from bench.settings import parse
from train.data.clicks import Filters, filter_clicks, read_clicks, split_by_time, write_clicks
from train.data.sessions import build_sessions
from train.data.synthetic import generate_synthetic

BAR = {"seconds": 5.0, "peak_mib": 1024}
FORMATS = ("parquet", "csv", "csv.gz")


class ClickLogSettings(BaseSettings):
    """Measure what a click log costs on its way to the trainer."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", cli_kebab_case=True, use_attribute_docstrings=True
    )
    clicks: PositiveInt = 1_000_000
    """Clicks in the log."""
    out: Path = Path("bench/results/click_log.json")
    """Where the figures go."""


def main(settings: ClickLogSettings) -> None:
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, spawn.Pool(1, maxtasksperchild=1) as pool:
        made = pool.apply(make_logs, (Path(folder), settings.clicks))
        read = {name: pool.apply(measure, (Path(folder) / f"log.{name}",)) for name in FORMATS}
    result = {**provenance(), "polars": version("polars"), "bar": BAR, "generate": made} | read
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"generate": made, **read}, indent=1))


def make_logs(folder: Path, n_clicks: int) -> dict[str, float]:
    """Write the shop's log in every format; what generating it took."""
    figures: dict[str, float] = {}
    with timed(figures, "seconds"):
        clicks = generate_synthetic(n_clicks)
    figures["peak_mib"] = peak_mib()
    for name in FORMATS:
        write_clicks(clicks, folder / f"log.{name}")
    return figures


def measure(path: Path) -> dict[str, Any]:
    """What it takes to read, filter, split and index this log."""
    figures: dict[str, Any] = {}
    began_cpu = time.process_time()
    with timed(figures, "read_seconds"):
        log = read_clicks(path, idle_timeout_s=1800)
    with timed(figures, "filter_seconds"):
        filtered = filter_clicks(log.clicks, Filters(min_item_support=5))
    with timed(figures, "split_seconds"):
        split = split_by_time(filtered.clicks, days=1)
    figures["seconds"] = round(sum(figures.values()), 3)
    figures["cpu_seconds"] = round(time.process_time() - began_cpu, 3)
    with timed(figures, "index_seconds"):
        build_sessions(split.train)
    figures["peak_mib"] = peak_mib()
    figures["clicks"] = len(log.clicks)
    return figures


@contextmanager
def timed(figures: dict[str, Any], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    figures[name] = round(time.perf_counter() - began, 3)


def peak_mib() -> float:
    """Peak resident memory of this process, imports included."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


if __name__ == "__main__":
    main(parse(ClickLogSettings))
