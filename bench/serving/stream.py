"""Clicks/s, latency and CPU of the stream worker and of a naive agent (``make bench``).

Each contender is one process and runs alone, on one broker; the rounds interleave the contenders,
so that a machine that slows down slows all of them. docs/performance.md says how to read the
result.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import structlog

from bench.provenance import RESULTS, keep
from bench.serving.bundles import write_tiny_bundle
from bench.serving.rounds import HIDDEN_SIZE, N_ITEMS, Backlog, K, Latency, Rounds
from bench.serving.workers import PARTITIONS, Contender, shown
from deploy.broker import EmbeddedKafka
from deploy.command import DeployError
from stream.settings import KafkaSettings
from train.command import Settings, run_command

log = structlog.get_logger(__name__)


class BenchSettings(Settings):
    """Measure the stream worker, a naive agent, and the worker with a model that costs nothing."""

    quick: bool = False
    """One short round, to see that everything works: its figures mean little."""
    out: Path = RESULTS / "stream.json"
    """File of the result."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How often and how long to measure."""

    backlogs: int
    backlog_share: float
    latencies: int
    warm_up_s: int
    measure_s: int


@dataclass(frozen=True, slots=True)
class Runs:
    """What was measured of one contender."""

    backlogs: list[Backlog]
    latencies: list[Latency]


FULL = Effort(backlogs=3, backlog_share=1.0, latencies=5, warm_up_s=10, measure_s=60)
QUICK = Effort(backlogs=1, backlog_share=0.25, latencies=1, warm_up_s=5, measure_s=10)


def contenders(folder: Path) -> list[Contender]:
    """Who is measured. A backlog lasts about ten seconds.

    The naive agent's latency is measured at half of what it can bear; at 1,000 clicks/s it falls
    behind for good.
    """
    model = write_tiny_bundle(folder, N_ITEMS, HIDDEN_SIZE, k=K)
    constant = write_tiny_bundle(folder, N_ITEMS, HIDDEN_SIZE, k=K, constant=True)
    return [
        Contender("nextclick", model, backlog_clicks=60_000, rate=1000),
        Contender("naive", model, backlog_clicks=8_000, rate=400, naive=True),
        Contender("constant", constant, backlog_clicks=60_000, rate=1000),
    ]


def measure(contenders: Sequence[Contender], effort: Effort, folder: Path) -> dict[str, Runs]:
    """Run everything on an embedded broker; by contender, whose order alternates."""
    runs = {contender.name: Runs([], []) for contender in contenders}
    with EmbeddedKafka(folder / "kafka") as kafka:
        rounds = Rounds(kafka.bootstrap_servers, folder)
        for seed, contender in in_turn(contenders, effort.backlogs):
            n_clicks = round(contender.backlog_clicks * effort.backlog_share)
            backlog = rounds.backlog(contender, n_clicks, seed)
            runs[contender.name].backlogs.append(backlog)
            rate = round(backlog.clicks_per_second)
            log.info(
                "backlog",
                contender=contender.name,
                clicks_per_second=rate,
                cpu_us_per_click=backlog.cpu_us,
            )
        for seed, contender in in_turn(contenders, effort.latencies):
            latency = rounds.latency(contender, effort.warm_up_s, effort.measure_s, seed)
            runs[contender.name].latencies.append(latency)
            figures: dict[str, float] = {
                "rate": contender.rate,
                "producer_behind_ms": latency.producer_behind_ms,
            }
            figures |= latency.quantiles
            log.info(
                "latency", contender=contender.name, **figures, cpu_us_per_click=latency.cpu_us
            )
    return runs


def in_turn(contenders: Sequence[Contender], n_rounds: int) -> Iterator[tuple[int, Contender]]:
    """Every contender once a round, with the round's seed; every other round backwards."""
    for seed in range(1, 1 + n_rounds):
        for contender in contenders[:: 1 if seed % 2 else -1]:
            yield seed, contender


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(median(row[name] for row in rows), 2) for name in rows[0]}


def summary(contenders: Sequence[Contender], runs: dict[str, Runs]) -> dict[str, Any]:
    """The figures as they are kept: medians over the runs, and every run."""
    rates = {contender.name: str(contender.rate) for contender in contenders}
    throughput = {
        name: [round(backlog.clicks_per_second, 1) for backlog in own.backlogs]
        for name, own in runs.items()
    }
    latency = {name: [latency.quantiles for latency in own.latencies] for name, own in runs.items()}
    return {
        "clicks_per_second": {name: median(own) for name, own in throughput.items()},
        "latency_ms": {name: {rates[name]: medians(own)} for name, own in latency.items()},
        "cpu_us_per_click": {
            name: {
                "backlog": medians([backlog.cpu_us for backlog in own.backlogs]),
                rates[name]: medians([latency.cpu_us for latency in own.latencies]),
            }
            for name, own in runs.items()
        },
        "runs": {
            "clicks_per_second": throughput,
            "latency_ms": {name: {rates[name]: own} for name, own in latency.items()},
        },
        "model": {"n_items": N_ITEMS, "hidden_size": HIDDEN_SIZE, "n_recommendations": K},
        "partitions": PARTITIONS,
        "settings": {c.name: shown(c.settings(KafkaSettings(), 1)) for c in contenders},
    }


def report(result: dict[str, Any]) -> str:
    lines = [
        f"{name:>10}  {rate:8,.0f} clicks/s   "
        + "   ".join(
            f"at {at}/s: " + "  ".join(f"{q} {ms:.1f} ms" for q, ms in figures.items())
            for at, figures in result["latency_ms"][name].items()
        )
        for name, rate in result["clicks_per_second"].items()
    ]
    lines.append(f"nextclick : naive = {result['ratio_to_naive']:.2f}")
    lines += [f"settings of {name}: {values}" for name, values in result["settings"].items()]
    lines += [
        f"us per click, {name}, {load}: {figures}"
        for name, by_load in result["cpu_us_per_click"].items()
        for load, figures in by_load.items()
    ]
    return "\n".join(lines)


def run(settings: BenchSettings) -> None:
    effort = QUICK if settings.quick else FULL
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as folder:
        measured = contenders(Path(folder))
        result = summary(measured, measure(measured, effort, Path(folder)))
    rates = result["clicks_per_second"]
    result["ratio_to_naive"] = round(rates["nextclick"] / rates["naive"], 2)
    keep(settings.out, result | {"effort": asdict(effort)})
    print(report(result))
    print(f"written to {settings.out}")


if __name__ == "__main__":
    sys.exit(run_command(BenchSettings, run, errors=(DeployError,)))
