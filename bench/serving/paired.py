"""Serving compared with an older commit: ``python -m bench.serving.paired --against COMMIT``.

Both workers serve the bundle that the older commit writes, on one broker and in turn, and answer
the same clicks in each round; this checkout's clients measure both. A ratio is this checkout's
figure over the older one's, round by round; the median counts.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from pydantic import PositiveInt

from bench.provenance import RESULTS, keep
from bench.serving.rounds import HIDDEN_SIZE, N_ITEMS, K
from bench.serving.stream import Effort, Runs, measure, summary
from bench.serving.workers import Contender
from deploy.command import DeployError
from train.command import Settings, TrainError, run_command

ROOT = Path(__file__).parents[2]
COMMITS = ROOT / "build" / "commits"
NOW, BEFORE = "now", "before"
WRITE_BUNDLE = """
import sys
from pathlib import Path
try:
    from bench.serving.bundles import write_tiny_bundle
except ImportError:  # of commits up to 8ec5a42
    from tests.bundles import write_tiny_bundle
folder, n_items, hidden_size, k = sys.argv[1:]
print(write_tiny_bundle(Path(folder), int(n_items), int(hidden_size), k=int(k)))
"""


class PairedSettings(Settings):
    """Measure this checkout's worker and an older commit's, and print their ratios."""

    against: str = "8ec5a42"
    """The older commit; its files go to build/commits."""
    rounds: PositiveInt = 3
    """Rounds of a backlog and of a latency, each of both workers."""
    seconds: PositiveInt = 30
    """Length of a latency measurement, after 10 s to warm up."""
    backlog_clicks: PositiveInt = 60_000
    """Clicks of a backlog."""
    rate: PositiveInt = 1000
    """Clicks/s at which the latency is measured."""
    out: Path = RESULTS / "paired.json"
    """File of the result."""


def checked_out(commit: str) -> Path:
    """A folder with the files of a commit. Raises TrainError if there is no such commit."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise TrainError(f"--against {commit}: {archive.stderr.decode().strip()}")
    folder = COMMITS / commit
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def bundle_of(checkout: Path, folder: Path) -> Path:
    """A bundle with random weights, written by the code of a checkout."""
    arguments = [str(folder), str(N_ITEMS), str(HIDDEN_SIZE), str(K)]
    command = [sys.executable, "-c", WRITE_BUNDLE, *arguments]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise TrainError(f"{checkout} wrote no bundle: {done.stderr.strip().splitlines()[-1]}")
    return Path(done.stdout.splitlines()[-1])


def ratios(runs: dict[str, Runs]) -> dict[str, list[float]]:
    """Each figure now over that before, by round."""
    figures: dict[str, Callable[[Runs], list[float]]] = {
        "clicks_per_second": lambda own: [b.clicks_per_second for b in own.backlogs],
        "cpu_us_per_click": lambda own: [b.cpu_us["cpu"] for b in own.backlogs],
        "latency_p50_ms": lambda own: [latency.quantiles["p50"] for latency in own.latencies],
        "latency_p99_ms": lambda own: [latency.quantiles["p99"] for latency in own.latencies],
    }
    return {
        name: [round(a / b, 3) for a, b in zip(of(runs[NOW]), of(runs[BEFORE]), strict=True)]
        for name, of in figures.items()
    }


def run(settings: PairedSettings) -> None:
    checkout = checked_out(settings.against)
    effort = Effort(settings.rounds, 1.0, settings.rounds, 10, settings.seconds)
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        bundle = bundle_of(checkout, Path(name))
        contenders = [
            Contender(NOW, bundle, settings.backlog_clicks, settings.rate),
            Contender(BEFORE, bundle, settings.backlog_clicks, settings.rate, checkout=checkout),
        ]
        runs = measure(contenders, effort, Path(name))
    found = ratios(runs)
    result = {"against": settings.against, "ratios": found, **summary(contenders, runs)}
    keep(settings.out, result)
    for figure, by_round in found.items():
        print(f"{figure:20} {median(by_round):.3f} of {settings.against}  {by_round}")


if __name__ == "__main__":
    sys.exit(run_command(PairedSettings, run, errors=(DeployError,)))
