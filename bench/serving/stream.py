"""Clicks/s, latency and CPU of the stream worker and of what it is compared with (``make bench``).

Each contender is one process and runs alone, on one broker; the rounds interleave the contenders,
so that a machine that slows down slows all of them. docs/performance.md says how to read the
result.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from pydantic import NonNegativeInt, PositiveInt, model_validator

from bench.provenance import RESULTS, keep, provenance
from bench.serving.bundles import even_live, write_tiny_bundle
from bench.serving.naive_agent import NaiveSettings
from bench.serving.quix_app import QuixSettings
from bench.serving.rounds import HIDDEN_SIZE, N_ITEMS, K, Rounds, Row
from bench.serving.runs import RATE, Runs, best_variants, family, rates, saturations, summary
from bench.serving.workers import PARTITIONS, QUIX_PYTHON, ROOT, Contender, shown
from deploy.broker import EmbeddedKafka
from deploy.command import DeployError
from stream.live.rules import NETWORK_BEST
from stream.settings import KafkaSettings
from train.command import Settings, TrainError, run_command

log = structlog.get_logger(__name__)

BEFORE = "8ec5a42"
"""The commit of the older worker: four transactions a batch, aiokafka."""
BUILD = ROOT / "build" / "bench"
COMMITS = ROOT / "build" / "commits"
NAMES = (
    *("nextclick", "before", "constant", "constant_before", "naive", "quix"),
    *("partitions_64", "live"),
)
QUIX_PACKAGES = Path(__file__).with_name("quix.txt")
QUIX_COMMIT_INTERVALS_S = (0.05, 0.1, 0.5)
WARM_UP_S = 10


class BenchSettings(Settings):
    """Measure the stream worker beside its older self, a naive agent and a Quix application.

    What was measured goes to build/bench, row by row: the command, started again, goes on there.
    """

    contenders: tuple[str, ...] = NAMES
    """Who is measured."""
    backlogs: PositiveInt = 3
    """Rounds of a backlog."""
    latencies: NonNegativeInt = 5
    """Rounds of a latency."""
    measure_s: PositiveInt = 60
    """Length of a latency measurement, after 10 s to warm up."""
    quick: bool = False
    """One short round, to see that everything works: its figures mean little, and go to
    build/bench/quick.json."""
    out: Path = RESULTS / "stream.json"
    """File of the result."""

    @model_validator(mode="after")
    def _check(self) -> "BenchSettings":
        if unknown := set(self.contenders) - set(NAMES):
            raise ValueError(f"--contenders: expected some of {', '.join(NAMES)} (found {unknown})")
        return self


def contenders(folder: Path) -> list[Contender]:
    """Who can be measured; the older commit does not read a bundle with integers."""
    model = write_tiny_bundle(folder, N_ITEMS, HIDDEN_SIZE, k=K)
    float32 = write_tiny_bundle(folder, N_ITEMS, HIDDEN_SIZE, k=K, int8=False)
    constant = write_tiny_bundle(folder, N_ITEMS, HIDDEN_SIZE, k=K, constant=True)
    rules = even_live(NETWORK_BEST)
    live = write_tiny_bundle(folder, N_ITEMS, HIDDEN_SIZE, k=K, live=rules)
    before = checked_out(BEFORE)
    return [
        Contender("nextclick", model, 60_000),
        Contender("before", float32, 60_000, checkout=before),
        Contender("constant", constant, 60_000),
        Contender("constant_before", constant, 60_000, checkout=before),
        Contender("naive", float32, 8_000, NaiveSettings),
        *(
            Contender(f"quix-{interval_s:g}", float32, 12_000, QuixSettings, None, 4, interval_s)
            for interval_s in QUIX_COMMIT_INTERVALS_S
        ),
        Contender("partitions_64", model, 60_000, partitions=64),
        Contender("live", live, 60_000, is_live=True),
    ]


def checked_out(commit: str) -> Path:
    """A folder with the files of a commit. Raises TrainError if there is no such commit."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise TrainError(f"no files of commit {commit}: {archive.stderr.decode().strip()}")
    folder = COMMITS / commit
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


@contextmanager
def warmed(everybody: Sequence[Contender], folder: Path, seconds: int) -> Iterator[Rounds]:
    """Rounds on an embedded broker that has worked for so long, for both constant workers.

    A broker compiles its own code for more than a minute, at the cost of the first measurements.
    """
    with EmbeddedKafka(folder / "kafka") as kafka:
        rounds = Rounds(kafka.bootstrap_servers, kafka.pid, folder)
        for contender in everybody:
            if contender.name in ("constant", "constant_before"):
                log.info("warm up", seconds=seconds // 2)
                rounds.latency(contender, RATE, 1, seconds // 2, seed=0)
        yield rounds


def in_turn(contenders: Sequence[Contender], n_rounds: int) -> Iterator[tuple[int, Contender]]:
    """Every contender once a round, with the round's number; every other round backwards."""
    for number in range(1, 1 + n_rounds):
        for contender in contenders[:: 1 if number % 2 else -1]:
            yield number, contender


def measure(rounds: Rounds, measured: Sequence[Contender], runs: Runs, s: BenchSettings) -> None:
    """Measure what the rows lack: backlogs first, which decide at which rates latencies are."""
    share = 0.25 if s.quick else 1.0
    for number, contender in in_turn(measured, s.backlogs):
        n_clicks = round(contender.backlog_clicks * share)
        what: Row = {"kind": "backlog", "contender": contender.name, "round": number}
        row = runs.row(
            what | {"clicks": n_clicks},
            partial(rounds.backlog, contender, n_clicks, number),
        )
        log.info(**row, event="backlog")
    saturation = saturations(runs.rows)
    best = best_variants(saturation)
    loads = {
        contender.name: rates(contender.name, saturation)
        for contender in measured
        if contender.name in best.values() and contender.partitions == PARTITIONS
    }
    for rate in sorted({rate for own in loads.values() for rate in own} if s.latencies else ()):
        what = {"kind": "producer", "contender": "producer", "rate": rate, "round": 1}
        row = runs.row(
            what | {"seconds": s.measure_s},
            partial(rounds.producer, rate, WARM_UP_S, s.measure_s, seed=1),
        )
        log.info(**row, event="producer")
    for number, contender in in_turn(measured, s.latencies):
        for rate in loads.get(contender.name, ()):
            what = {"kind": "latency", "contender": contender.name, "rate": rate, "round": number}
            row = runs.row(
                what | {"seconds": s.measure_s},
                partial(rounds.latency, contender, rate, WARM_UP_S, s.measure_s, number),
            )
            log.info(**row, event="latency")


def report(result: dict[str, Any]) -> str:
    lines = []
    for name, rate in result["clicks_per_second"].items():
        lines.append(f"{name:>16}  {rate:8,.0f} clicks/s")
        for at, cpu in result["cpu_us_per_click"][name].items():
            latency = result["latency_ms"][name].get(at, {})
            figures = [f"{quantile} {ms:.1f} ms" for quantile, ms in latency.items()]
            figures += [f"{cpu['worker']:.0f} + {cpu['broker']:.0f} us a click"]
            lines.append(f"{'':>16}  {at:>8}: " + "  ".join(figures))
    for pair, figures in result["ratios"].items():
        for figure, by_load in figures.items():
            medians = "  ".join(f"{at}: {found['median']}" for at, found in by_load.items())
            lines.append(f"{pair:>26}  {figure:18} {medians}")
    return "\n".join(lines)


def run(settings: BenchSettings) -> None:
    if settings.quick:
        update = {"backlogs": 1, "latencies": 1, "measure_s": 10, "out": BUILD / "quick.json"}
        settings = settings.model_copy(update=update)
    if "quix" in settings.contenders and not QUIX_PYTHON.exists():
        raise TrainError("no environment for the Quix application: `make build/quix/installed`")
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        folder = Path(name)
        everybody = contenders(folder)
        measured = [c for c in everybody if family(c.name) in settings.contenders]
        kept = folder if settings.quick else BUILD
        runs = Runs(kept / f"stream-{provenance()['commit']}.jsonl")
        with warmed(everybody, folder, seconds=10 if settings.quick else 120) as rounds:
            measure(rounds, measured, runs, settings)
        result = summary(runs.rows) | {
            "model": {"n_items": N_ITEMS, "hidden_size": HIDDEN_SIZE, "n_recommendations": K},
            "partitions": PARTITIONS,
            "before": BEFORE,
            "quix_packages": QUIX_PACKAGES.read_text().splitlines()[1:],
            "settings": {c.name: shown(c.settings(KafkaSettings(), 1, folder)) for c in measured},
            "rows": runs.rows,
        }
    keep(settings.out, result)
    print(report(result))
    print(f"written to {settings.out}")


if __name__ == "__main__":
    sys.exit(run_command(BenchSettings, run, errors=(DeployError,)))
