"""The grid of docs/experiments.md: ``python -m bench.lab.experiments DATASET... [--seeds 1,2]``.

A run trains one setting of `bench/lab/grid.py` with one seed on the older part of the training
file, keeps the epoch that is best on the newer part, and ranks that part and the test file with it:
one line in `bench/results/experiments/<data set>.jsonl`. The test chooses nothing. Runs that have
a line are not repeated, so a grid that is killed loses one run. The ranks, which the tables'
intervals and paired tests need, go to build/ranks.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded, which is next

import structlog
import torch
from pydantic import PositiveFloat
from pydantic_settings import CliPositionalArg

from bench.datasets import check_known
from bench.fitting import SHOWN
from bench.lab.grid import DATASETS, DataSet, Setting, Variant, variants
from bench.lab.run import Line, Logs, build_logs, key_of, load_parts, measure
from bench.provenance import RESULTS, provenance
from train.command import Settings, TrainError, run_command
from train.fit.loop import MONITOR

RUNS = RESULTS / "experiments"
RANKS = Path(__file__).parents[2] / "build" / "ranks"
CHOOSING_SEED = 1
"""All tries of a variant run with it; other seeds run the one that it chose."""

log = structlog.get_logger()


class ExperimentSettings(Settings):
    """Run what is missing of the experiments on the named data sets, on one core."""

    datasets: CliPositionalArg[list[str]]
    """Names in bench/lab/grid.py."""
    seeds: tuple[int, ...] = ()
    """Seeds to run; default: the data set's own. Seed 1 comes first: it chooses among tries."""
    only: tuple[str, ...] = ()
    """Factors to run; default: all."""
    budget_minutes: PositiveFloat | None = None
    """Start no run that would end later than this if it took as long as the longest so far."""
    ranks: bool = False
    """Also repeat runs that have a line but no ranks in build/ranks."""


class Run(NamedTuple):
    """Something to measure."""

    variant: Variant
    setting: Setting
    seed: int


def ranks_path(data: DataSet, key: str, seed: int, folder: Path = RANKS) -> Path:
    """Where a run's ranks are, if it was made here."""
    return folder / data.name / f"{key}, seed {seed}.npy"


def plan(
    data: DataSet, lines: list[Line], seeds: Sequence[int] = (), only: Sequence[str] = ()
) -> Iterator[Run]:
    """What is missing in `lines`, one at a time: they may grow in between.

    Seed 1 of everything comes first. A setting that is part of several tables is run once.
    """
    rows = [variant for variant in variants(data) if not only or variant.factor in only]
    for seed in dict.fromkeys((CHOOSING_SEED, *(seeds or data.seeds))):
        for variant in rows:
            every = seed == CHOOSING_SEED
            for setting in variant.settings if every else [chosen(data, variant, lines)]:
                key = key_of(data, setting)
                if not any(line["key"] == key and line["seed"] == seed for line in lines):
                    yield Run(variant, setting, seed)


def chosen(data: DataSet, variant: Variant, lines: Sequence[Line]) -> Setting:
    """The try that validates best with seed 1; the first if none was run."""
    reached = {
        line["key"]: line["validation"][MONITOR]
        for line in lines
        if line["seed"] == CHOOSING_SEED and "failed" not in line
    }
    return max(variant.settings, key=lambda setting: reached.get(key_of(data, setting), -1.0))


def load_lines(path: Path, data: DataSet) -> list[Line]:
    """The kept runs; the last one of those that were repeated.

    A last line that was cut short by a kill is removed from the file. Raises TrainError if the runs
    are of another base: the file's first line is the base.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete, newline, torn = text.rpartition("\n")
    if torn:
        path.write_text(complete + newline, encoding="utf-8")
    first, *lines = (json.loads(line) for line in complete.splitlines())
    if first != data.frozen:
        raise TrainError(
            f"{path} holds runs of another base than {data.name}'s in bench/lab/grid.py, "
            f"{data.frozen}: move the file away to start again"
        )
    return list({(line["key"], line["seed"]): line for line in lines}.values())


def append_line(path: Path, data: DataSet, line: Line) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for content in (line,) if file.tell() else (data.frozen, line):
            file.write(json.dumps(content) + "\n")


class Budget:
    """Tells whether there is time for one more run."""

    def __init__(self, minutes: float | None) -> None:
        self._end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        self._longest = 0.0

    def has_room(self) -> bool:
        """Whether the next run would end in time if it took as long as the longest so far."""
        return time.monotonic() + self._longest <= self._end

    def spend(self, seconds: float) -> None:
        self._longest = max(self._longest, seconds)


def run_missing(
    data: DataSet,
    settings: ExperimentSettings,
    budget: Budget,
    results: Path = RUNS,
    ranks: Path = RANKS,
) -> bool:
    """Measure what is missing of a data set; whether nothing is missing any more."""
    path = results / f"{data.name}.jsonl"
    lines = load_lines(path, data)
    if settings.ranks:
        paths = [ranks_path(data, line["key"], line["seed"], ranks) for line in lines]
        both = zip(lines, paths, strict=True)
        lines = [line for line, path in both if "failed" in line or path.exists()]
    parts, commit = load_parts(data), provenance()["commit"]
    logs: dict[tuple[object, ...], Logs] = {}
    for variant, setting, seed in plan(data, lines, settings.seeds, settings.only):
        if not budget.has_room():
            return False
        if setting.reading not in logs:  # the last one is enough: neighbours share their reading
            logs = {setting.reading: build_logs(parts, data, setting)}
        begin, own_ranks = time.monotonic(), ranks_path(data, key_of(data, setting), seed, ranks)
        line = measure(data, setting, seed, logs[setting.reading], own_ranks)
        budget.spend(time.monotonic() - begin)
        lines.append({**line, "commit": commit})
        append_line(path, data, lines[-1])
        reached = {name: line["validation"][name] for name in SHOWN if "failed" not in line}
        where = {"dataset": data.name, "factor": variant.factor, "row": variant.name, "seed": seed}
        log.info("run", **where, **reached, seconds=line["seconds"])
    return True


def run(settings: ExperimentSettings) -> int:
    """Exit code 0 when nothing is missing any more, 3 when the budget ended it."""
    torch.set_num_threads(1)
    check_known("data set", settings.datasets, list(DATASETS))
    datasets = [DATASETS[name] for name in settings.datasets]
    factors = [row.factor for data in datasets for row in variants(data)]
    check_known("factor", settings.only, list(dict.fromkeys(factors)))
    budget = Budget(settings.budget_minutes)
    return 0 if all([run_missing(data, settings, budget) for data in datasets]) else 3


if __name__ == "__main__":
    sys.exit(run_command(ExperimentSettings, run))
