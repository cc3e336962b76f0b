"""How good lists are that learn from the stream, as they are served: ``python -m bench.live LOG``.

A log is replayed behind its history through a real broker, two workers and the item processor, and
a plain reader of the recommendations judges each list by the session's next click.
docs/performance.md says how to read the result.
"""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any

import polars as pl
import structlog
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_settings import CliPositionalArg

from bench.datasets import folder_of
from bench.live.clicks import as_stream, read_log
from bench.live.judge import Judge
from bench.live.replay import Pace, Replay, service
from bench.live.variants import ROWS, Row, exported, write_variant
from bench.provenance import RESULTS, keep, provenance
from bench.serving.runs import Runs
from bench.serving.workers import ROOT
from deploy.processes import end_on_signals
from stream.errors import StreamError
from stream.model.bundle import Bundle
from train.command import Settings, TrainError, run_command
from train.fit.command import run_fit
from train.fit.settings import FitSettings
from train.folders import locked
from train.network.checkpoint import INFO, load_checkpoint

BUILD = ROOT / "build" / "bench"
FOLDER = BUILD / "live"
SEEDS = (1, 2, 3)
HISTORY_PACE = Pace(window_s=120, most_open=1000)
WINDOW_S, MOST_OPEN = 10, 64
PROTOCOL = (
    "lists read from the recommendations topic; every next click of the log's sessions, whatever "
    "the gap, and whether or not its item was ever seen before; ties count against the list"
)
FIGURES = ("recall_at_20", "mrr_at_20")

Run = dict[str, Any]

log = structlog.get_logger()


class LiveSettings(Settings):
    """Replay a click log through real workers, and measure the lists that they publish.

    What was measured goes to build/bench, run by run: the command, started again, goes on there.
    """

    clicks: CliPositionalArg[Path]
    """Click log whose next clicks are predicted: what came after the history."""
    history: Path | None = None
    """Click log of what came before, which is replayed first; unset: globo-5d's training part."""
    checkpoints: tuple[Path, ...] = tuple(Path(f"build/live/seed-{seed}") for seed in SEEDS)
    """Folders of networks that differ in their seed. One that does not exist is trained on the
    history, with its place among them as its seed."""
    rows: tuple[Row, ...] = ROWS
    """static: the network alone. bias: with the stream's bias, and what it does with seen items.
    counts: what the stream has counted, without a network, and once for all. live: all."""
    rate: PositiveFloat = 400.0
    """Most clicks of the log that are sent a second where lists depend on a view."""
    newest: NonNegativeInt | None = None
    """Replay only so many clicks of the history, the newest; unset: all."""
    first: PositiveInt | None = None
    """Replay only so many clicks of the log, the first; unset: all."""
    out: Path = RESULTS / "live.json"
    """File of the result."""


def run(settings: LiveSettings) -> None:
    end_on_signals()
    history_path = settings.history or folder_of("globo-5d") / "train.tsv.gz"
    clicks, history = read_logs(settings, history_path)
    how: Run = {
        "clicks": _shown(settings.clicks),
        "history": _shown(history_path),
        **settings.model_dump(include={"rate", "newest", "first"}),
    }
    with locked(FOLDER, "another python -m bench.live is under way; wait for its end"):
        runs = Runs(BUILD / f"live-{provenance()['commit']}.jsonl")
        found = []
        for row, checkpoint, bundle in _bundles(settings, history_path):
            what = {"name": row, "bundle_id": bundle.manifest.bundle_id, **how}
            one = runs.row(what, partial(measure, row, bundle, clicks, history, settings.rate))
            found.append({"checkpoint": _shown(checkpoint), **one})
            log.info("measured", **what, **{figure: one[figure] for figure in FIGURES})
    result = summary(found)
    keep(settings.out, {"protocol": PROTOCOL, **how, **result})
    for row in result["rows"]:
        print(f"{row['name']:>8}  {row['recall_at_20']:.4f} / {row['mrr_at_20']:.4f}")
    print(f"written to {settings.out}")


def read_logs(settings: LiveSettings, history_path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What is replayed of the log and of its history. Raises TrainError."""
    clicks, history = read_log(settings.clicks), read_log(history_path)
    if clicks["timestamp_ms"][0] <= history["timestamp_ms"][0]:
        raise TrainError(
            f"{settings.clicks} begins before {history_path}: expected a log that goes on where "
            "its --history ends"
        )
    newest = len(history) if settings.newest is None else settings.newest
    return clicks[: settings.first], history.tail(newest)


def _shown(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _bundles(settings: LiveSettings, history: Path) -> Iterator[tuple[Row, Path, Bundle]]:
    """Each row's bundle of each checkpoint, which is trained if it is not there."""
    for seed, folder in enumerate(settings.checkpoints, start=1):
        if not (folder / INFO).exists():
            given = {"clicks": history, "columns": "public", "seed": seed, "out": folder}
            run_fit(FitSettings.model_validate(given))
        checkpoint = load_checkpoint(folder)
        whole = exported(checkpoint, FOLDER / "bundles")
        for row in settings.rows:
            if row != "counts" or seed == 1:
                yield row, folder, write_variant(row, whole, checkpoint, FOLDER / "bundles")


def measure(
    row: Row, bundle: Bundle, clicks: pl.DataFrame, history: pl.DataFrame, rate: float
) -> Run:
    """One run: the history, then the log, answered by processes that began with nothing."""
    live = bundle.manifest.live is not None
    if not live:  # a list is a matter of its session alone
        history = history.join(clicks, on="session_id", how="semi", maintain_order="left")
    stream = as_stream(history, clicks)
    judge = Judge(stream, bundle.item_index)
    logs = FOLDER / f"{row}-{bundle.manifest.bundle_id}"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    began = time.monotonic()
    with (
        service(bundle.folder, logs, live=live) as running,
        Replay(running, stream, judge) as replay,
    ):
        seconds = {"start": time.monotonic() - began}
        seconds["history"] = replay.run(stream.begin, HISTORY_PACE)
        running.settle()
        before = running.cpu_s()
        pace = Pace(WINDOW_S, MOST_OPEN, rate if live else inf)
        seconds["log"] = replay.run(len(stream), pace)
        cpu_s = {name: s - before[name] for name, s in running.cpu_s().items()}
        offsets = running.offsets()
    return {
        **judge.figures(),
        "view": judge.view(),
        "offsets": offsets,
        "wall_s": _rounded(seconds),
        "cpu_s_of_log": _rounded(cpu_s),
    }


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(s, 1) for name, s in seconds.items()}


def summary(runs: Sequence[Run]) -> Run:
    """The rows, each the mean of its runs with all of them, and what else is known of each run."""
    names = dict.fromkeys(run["name"] for run in runs)
    of = {name: [run for run in runs if run["name"] == name] for name in names}
    rows = [
        {
            "name": name,
            **{figure: round(mean(run[figure] for run in own), 4) for figure in FIGURES},
            **{f"{figure}_by_run": [run[figure] for run in own] for figure in FIGURES},
        }
        for name, own in of.items()
    ]
    by_run = {
        part: {name: [run[key] for run in own] for name, own in of.items()}
        for part, key in PARTS.items()
    }
    return {"predictions": runs[0]["predictions"], **by_run, "rows": rows}


PARTS = {
    **{"checkpoints": "checkpoint", "bundle_ids": "bundle_id"},
    **{name: name for name in ("by_prefix", "by_target", "by_outcome", "hits_by_source")},
    **{name: name for name in ("view", "offsets", "wall_s", "cpu_s_of_log")},
}
"""What stands beside the rows by name, a value for each run, and what a run calls it."""


if __name__ == "__main__":
    sys.exit(run_command(LiveSettings, run, errors=(StreamError,)))
