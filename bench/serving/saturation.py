"""p50 and p99 against load up to what a worker can bear: ``python -m bench.serving.saturation``.

Contenders take turns at each share of their own clicks/s, which a backlog tells first. What was
measured goes to build/bench, as that of bench.serving.stream.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import structlog
from matplotlib.figure import Figure
from pydantic import PositiveInt

from bench.provenance import RESULTS, keep, provenance
from bench.serving.rounds import Row
from bench.serving.runs import Runs, family, saturations
from bench.serving.stream import BUILD, WARM_UP_S, contenders, in_turn, warmed
from bench.serving.workers import ROOT
from deploy.command import DeployError
from train.command import Settings, run_command

log = structlog.get_logger(__name__)

SHARES = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
"""Of a contender's clicks/s of a backlog."""
FELL_BEHIND_MS = 2000
LINES = {
    "nextclick": ("#0072B2", "this worker"),
    "before": ("#D55E00", "the worker of 0.1.0"),
    "quix": ("#009E73", "Quix Streams"),
}
"""Colour-blind safe (Okabe and Ito)."""


class SaturationSettings(Settings):
    """Measure latency against load, and draw it."""

    quix_commit_interval_s: float = 0.1
    """One of those that `make bench` measures; take its best."""
    rounds: PositiveInt = 1
    """Rounds of every load."""
    measure_s: PositiveInt = 20
    """Length of a measurement, after 10 s to warm up."""
    redraw: bool = False
    """Draw the kept result again and measure nothing."""
    out: Path = RESULTS / "saturation.json"
    """File of the result."""
    picture: Path = ROOT / "docs" / "saturation.svg"
    """File of the picture."""


def measure(settings: SaturationSettings, folder: Path, runs: Runs) -> None:
    everybody = contenders(folder)
    names = ("nextclick", "before", f"quix-{settings.quix_commit_interval_s:g}")
    measured = [contender for contender in everybody if contender.name in names]
    with warmed(everybody, folder, seconds=120) as rounds:
        for contender in measured:
            backlog = partial(rounds.backlog, contender, contender.backlog_clicks, 1)
            row = runs.row({"kind": "backlog", "contender": contender.name}, backlog)
            log.info(**row, event="backlog")
        bears = saturations(runs.rows)
        for share in SHARES:
            for number, contender in in_turn(measured, settings.rounds):
                rate = round(share * bears[contender.name])
                what: Row = {"kind": "latency", "contender": contender.name, "round": number}
                latency = partial(
                    rounds.latency, contender, rate, WARM_UP_S, settings.measure_s, number
                )
                log.info(**runs.row(what | {"rate": rate}, latency), event="latency")


def curves(rows: Sequence[Row]) -> dict[str, list[dict[str, float]]]:
    """By contender a point for each load: rate, p50, p99, and the time to the last answer."""
    found: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        if row["kind"] == "latency":
            loads = found.setdefault(family(row["contender"]), {})
            loads.setdefault(row["rate"], []).append(row)
    return {
        name: [
            {
                "rate": rate,
                "p50": median(row["latency_ms"]["p50"] for row in own),
                "p99": median(row["latency_ms"]["p99"] for row in own),
                "last_answer_ms": median(row["last_answer_ms"] for row in own),
            }
            for rate, own in sorted(loads.items())
        ]
        for name, loads in found.items()
    }


def draw(path: Path, points: dict[str, list[dict[str, float]]]) -> None:
    """An SVG of p50 and p99 against clicks/s; a load that was too much has a hollow mark."""
    # Text stays text, and the same figures give the same file.
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "nextclick"}
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    quantiles = (("p50", "-"), ("p99", "--"))
    for name, (colour, label) in LINES.items():
        axis.plot([], [], color=colour, label=label)
        own = points.get(name, [])
        rates = [point["rate"] for point in own]
        for quantile, style in quantiles:
            ms = [point[quantile] for point in own]
            axis.plot(rates, ms, style, color=colour)
            for point in own:
                face = "white" if point["last_answer_ms"] > FELL_BEHIND_MS else colour
                axis.plot(point["rate"], point[quantile], "o", color=colour, markerfacecolor=face)
    for quantile, style in quantiles:
        axis.plot([], [], style, color="0.3", label=quantile)
    axis.set(yscale="log", xlabel="clicks/s", ylabel="ms from a click to its list")
    axis.set_xlim(left=0)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.25, which="both")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def run(settings: SaturationSettings) -> None:
    if not settings.redraw:
        runs = Runs(BUILD / f"saturation-{provenance()['commit']}.jsonl")
        with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as folder:
            measure(settings, Path(folder), runs)
        result = {
            "clicks_per_second": saturations(runs.rows),
            "measure_s": settings.measure_s,
            "curves": curves(runs.rows),
        }
        keep(settings.out, result | {"rows": runs.rows})
    kept: dict[str, Any] = json.loads(settings.out.read_text())
    draw(settings.picture, kept["curves"])
    print(f"written to {settings.out} and {settings.picture}")


if __name__ == "__main__":
    sys.exit(run_command(SaturationSettings, run, errors=(DeployError,)))
