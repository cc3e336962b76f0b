"""What a million clicks cost to generate, read, split, filter and index, by the log's format.

``python -m bench.training.click_log``.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from bench.measuring import in_child, timed
from bench.provenance import RESULTS, keep
from bench.training.prepare import measure
from train.command import Settings, run_command
from train.data.clicks import Columns, write_clicks
from train.data.synthetic import generate_synthetic

BAR = {"seconds": 5.0, "peak_mib": 1024}
"""Of each format, reading to indexing."""
FORMATS = ("parquet", "csv", "csv.gz")


class ClickLogSettings(Settings):
    """Measure what a click log costs on its way to the trainer."""

    clicks: PositiveInt = 1_000_000
    """Clicks in the log."""
    out: Path = RESULTS / "click_log.json"
    """File of the figures."""


def run(settings: ClickLogSettings) -> None:
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        seconds, spent = in_child(write, Path(folder), settings.clicks)
        result["generate"] = {"seconds": seconds, "peak_mib": spent.peak_mib}
        for name in FORMATS:
            measured, spent = in_child(measure, Path(folder, f"log.{name}"), Columns())
            seconds = round(sum(measured["parts_seconds"].values()), 3)
            result[name] = {"seconds": seconds, "peak_mib": spent.peak_mib} | measured
    keep(settings.out, {"bar": BAR} | result)
    print(json.dumps(result, indent=1))


def write(folder: Path, n_clicks: int) -> float:
    """Write the log in every format; the seconds of generating it."""
    seconds: dict[str, float] = {}
    with timed(seconds, "generate"):
        clicks = generate_synthetic(n_clicks)
    for name in FORMATS:
        write_clicks(clicks, folder / f"log.{name}")
    return seconds["generate"]


if __name__ == "__main__":
    sys.exit(run_command(ClickLogSettings, run))
