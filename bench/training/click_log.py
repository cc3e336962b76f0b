"""What a million clicks cost to generate, read, filter and split, by the log's format.

``python -m bench.training.click_log``.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from bench.measuring import in_child, timed
from bench.provenance import RESULTS, keep
from train.command import Settings, run_command
from train.data.clicks import Filters, filter_clicks, read_clicks, split_by_time, write_clicks
from train.data.sessions import build_sessions
from train.data.synthetic import generate_synthetic

BAR = {"seconds": 5.0, "peak_mib": 1024}
FORMATS = ("parquet", "csv", "csv.gz")


class ClickLogSettings(Settings):
    """Measure what a click log costs on its way to the trainer."""

    clicks: PositiveInt = 1_000_000
    """Clicks in the log."""
    out: Path = RESULTS / "click_log.json"
    """File of the figures."""


def run(settings: ClickLogSettings) -> None:
    """Measure each format in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        measured, spent = in_child(generate, settings.clicks)
        result = {"generate": measured | {"peak_mib": spent.peak_mib}}
        in_child(write, Path(folder), settings.clicks)
        for name in FORMATS:
            measured, spent = in_child(measure, Path(folder, f"log.{name}"))
            result[name] = measured | {"peak_mib": spent.peak_mib}
    keep(settings.out, {"bar": BAR} | result)
    print(json.dumps(result, indent=1))


def generate(n_clicks: int) -> dict[str, float]:
    """What generating the log takes."""
    seconds: dict[str, float] = {}
    with timed(seconds, "seconds"):
        generate_synthetic(n_clicks)
    return seconds


def write(folder: Path, n_clicks: int) -> None:
    """Write the log in every format."""
    clicks = generate_synthetic(n_clicks)
    for name in FORMATS:
        write_clicks(clicks, folder / f"log.{name}")


def measure(path: Path) -> dict[str, Any]:
    """What it takes to read, filter, split and index this log."""
    seconds: dict[str, float] = {}
    began_cpu = time.process_time()
    with timed(seconds, "read_seconds"):
        log = read_clicks(path, idle_timeout_s=1800)
    with timed(seconds, "filter_seconds"):
        filtered = filter_clicks(log.clicks, Filters(min_item_support=5))
    with timed(seconds, "split_seconds"):
        split = split_by_time(filtered.clicks, days=1)
    seconds["seconds"] = round(sum(seconds.values()), 3)
    seconds["cpu_seconds"] = round(time.process_time() - began_cpu, 3)
    with timed(seconds, "index_seconds"):
        build_sessions(split.train)
    return seconds | {"clicks": len(log.clicks)}


if __name__ == "__main__":
    sys.exit(run_command(ClickLogSettings, run))
