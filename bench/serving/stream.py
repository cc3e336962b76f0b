"""Clicks a second, latency and CPU of the stream worker, beside a naive agent (``make bench``).

One run on one broker; each contender is one process, alone at its time; the rounds interleave the
contenders, so that a machine that slows down slows all of them. docs/performance.md says how to
read the result.
"""

import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog
from pydantic_settings import BaseSettings, SettingsConfigDict

from bench.provenance import provenance
from bench.serving.bundles import write_tiny_bundle
from bench.serving.rounds import HIDDEN_SIZE, N_ITEMS, Backlog, BenchError, K, Latency, Rounds
from bench.serving.workers import PARTITIONS, Contender, shown
from bench.settings import parse
from deploy.broker import EmbeddedKafka
from deploy.command import DeployError
from stream.logs import configure_logging
from stream.settings import KafkaSettings

log = structlog.get_logger(__name__)

RESULT = Path(__file__).parents[1] / "results" / "stream.json"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class BenchSettings(BaseSettings):
    """Measure the stream worker beside a naive agent, and with a model that costs nothing."""

    model_config = SettingsConfigDict(
        env_prefix="NEXTCLICK_BENCH_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="python -m bench.serving.stream",
        use_attribute_docstrings=True,
    )

    quick: bool = False
    """One short round, to see that all works: its figures mean little."""
    out: Path = RESULT
    """File of the result."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How often and how long to measure."""

    backlogs: int
    backlog_share: float
    latencies: int
    warm_up_s: int
    measure_s: int


FULL = Effort(backlogs=3, backlog_share=1.0, latencies=5, warm_up_s=10, measure_s=60)
QUICK = Effort(backlogs=1, backlog_share=0.25, latencies=1, warm_up_s=5, measure_s=10)


def contenders(folder: Path) -> list[Contender]:
    """Return who is measured. A backlog lasts about ten seconds.

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


def measure(effort: Effort, folder: Path) -> dict[str, Any]:
    """Run everything and return the result as it is written."""
    backlogs: dict[str, list[Backlog]] = {}
    latencies: dict[str, list[Latency]] = {}
    measured = contenders(folder)
    with EmbeddedKafka(folder / "kafka") as kafka:
        rounds = Rounds(kafka.bootstrap_servers, folder)
        for _ in range(effort.backlogs):
            for contender in measured:
                backlog = rounds.backlog(
                    contender, round(contender.backlog_clicks * effort.backlog_share)
                )
                backlogs.setdefault(contender.name, []).append(backlog)
                log.info(
                    "backlog",
                    contender=contender.name,
                    clicks_per_second=round(backlog.clicks_per_second),
                    cpu_us_per_click=backlog.cpu_us,
                )
        for _ in range(effort.latencies):
            for contender in measured:
                latency = rounds.latency(
                    contender, contender.rate, effort.warm_up_s, effort.measure_s
                )
                latencies.setdefault(contender.name, []).append(latency)
                log.info(
                    "latency",
                    contender=contender.name,
                    rate=contender.rate,
                    **quantiles(latency),
                    sender_behind_ms=latency.sender_behind_ms,
                    cpu_us_per_click=latency.cpu_us,
                )
    settings = {c.name: shown(c.settings(KafkaSettings(), 1)) for c in measured}
    rates = {c.name: c.rate for c in measured}
    return summary(backlogs, latencies, rates) | {
        "model": {"n_items": N_ITEMS, "hidden_size": HIDDEN_SIZE, "n_recommendations": K},
        "partitions": PARTITIONS,
        "settings": settings,
        "effort": {name: getattr(effort, name) for name in Effort.__slots__},
    }


def quantiles(latency: Latency) -> dict[str, float]:
    """Return the quantiles we report, in milliseconds."""
    return {name: round(float(np.quantile(latency.ms, q)), 2) for name, q in QUANTILES.items()}


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure over the runs."""
    return {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}


def summary(
    backlogs: dict[str, list[Backlog]],
    latencies: dict[str, list[Latency]],
    rates: dict[str, int],
) -> dict[str, Any]:
    """Return the figures: medians over the runs, and every run."""
    throughput = {
        name: [round(run.clicks_per_second, 1) for run in runs] for name, runs in backlogs.items()
    }
    median = {name: statistics.median(runs) for name, runs in throughput.items()}
    latency = {
        name: {str(rates[name]): [quantiles(run) for run in runs]}
        for name, runs in latencies.items()
    }
    return {
        "clicks_per_second": median,
        "ratio_to_naive": round(median["nextclick"] / median["naive"], 2),
        "latency_ms": {
            name: {rate: medians(runs) for rate, runs in by_rate.items()}
            for name, by_rate in latency.items()
        },
        "cpu_us_per_click": {
            name: {
                "backlog": medians([run.cpu_us for run in backlogs[name]]),
                str(rates[name]): medians([run.cpu_us for run in latencies[name]]),
            }
            for name in backlogs
        },
        "runs": {"clicks_per_second": throughput, "latency_ms": latency},
    }


def report(result: dict[str, Any]) -> str:
    """Return what a reader wants to see first."""
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
        f"us a click, {name}, {load}: {figures}"
        for name, by_load in result["cpu_us_per_click"].items()
        for load, figures in by_load.items()
    ]
    return "\n".join(lines)


def main() -> int:
    settings = parse(BenchSettings)
    configure_logging("info")
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as folder:
        try:
            result = provenance() | measure(QUICK if settings.quick else FULL, Path(folder))
        except (BenchError, DeployError) as error:
            print(error, file=sys.stderr)
            return 2
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    print(report(result))
    print(f"written to {settings.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
