"""The grid of docs/experiments.md: ``python -m bench.lab.experiments DATASET... [--seeds 1,2]``.

A run trains one setting of `bench/lab/grid.py` with one seed on the older part of the training
file, keeps the epoch that is best on the newer part, and ranks that part and the test file with it:
one line in `bench/results/experiments/<data set>.jsonl`. Nothing is chosen by the test. Runs
that have their line are not repeated, so a killed grid loses one run.
"""

import json
import logging
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
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from bench.lab.grid import DATASETS, DataSet, Setting, Variant, variants
from bench.lab.run import SHOWN, Line, Logs, build_logs, key_of, load_parts, measure
from bench.provenance import provenance
from bench.settings import parse
from train.fit.loop import MONITOR

RESULTS = Path(__file__).parents[1] / "results" / "experiments"
CHOOSING_SEED = 1
"""All tries of a variant are run with it; other seeds run the one that it chose."""

log = structlog.get_logger()


class ExperimentSettings(BaseSettings):
    """Run what is missing of the experiments on the named data sets, on one core."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_prog_name="python -m bench.lab.experiments",
        cli_kebab_case=True,
        use_attribute_docstrings=True,
    )
    datasets: CliPositionalArg[list[str]]
    """Names in bench/lab/grid.py."""
    seeds: list[int] = []
    """Seeds to run; none given: the data set's own. Seed 1 comes first: it chooses among tries."""
    only: list[str] = []
    """Factors to run; none given: all."""
    budget_minutes: PositiveFloat | None = None
    """Begin no run that would end later, were it the longest so far."""


class Run(NamedTuple):
    """Something to measure."""

    variant: Variant
    setting: Setting
    seed: int


def plan(
    data: DataSet, lines: list[Line], seeds: Sequence[int] = (), only: Sequence[str] = ()
) -> Iterator[Run]:
    """What is missing in `lines`, one at a time: they may grow in between.

    Seed 1 of everything comes first. A setting that stands in several tables is run once.
    """
    rows = [variant for variant in variants(data) if not only or variant.factor in only]
    for seed in dict.fromkeys((CHOOSING_SEED, *(seeds or data.seeds))):
        for variant in rows:
            choosing = seed == CHOOSING_SEED
            for setting in variant.settings if choosing else [chosen(data, variant, lines)]:
                key = key_of(data, setting)
                if not any(line["key"] == key and line["seed"] == seed for line in lines):
                    yield Run(variant, setting, seed)


def chosen(data: DataSet, variant: Variant, lines: Sequence[Line]) -> Setting:
    """The try that validates best with seed 1; of tries that were not run, the first."""
    reached = {
        line["key"]: line["validation"][MONITOR]
        for line in lines
        if line["seed"] == CHOOSING_SEED and "failed" not in line
    }
    return max(variant.settings, key=lambda setting: reached.get(key_of(data, setting), -1.0))


def load_lines(path: Path) -> list[Line]:
    """The runs that are kept; a last line that a kill cut short is removed from the file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole, newline, torn = text.rpartition("\n")
    if torn:
        path.write_text(whole + newline, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def append_line(path: Path, line: Line) -> None:
    """Keep one more run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


class Budget:
    """Tells whether one more run fits in."""

    def __init__(self, minutes: float | None) -> None:
        self._end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        self._longest = 0.0

    def has_room(self) -> bool:
        """Were the next run the longest so far, it would end in time."""
        return time.monotonic() + self._longest <= self._end

    def spend(self, seconds: float) -> None:
        """A run took so long."""
        self._longest = max(self._longest, seconds)


def run_missing(
    data: DataSet,
    settings: ExperimentSettings,
    budget: Budget,
    results: Path = RESULTS,
) -> bool:
    """Measure what is missing of a data set; whether nothing is missing any more."""
    path = results / f"{data.name}.jsonl"
    lines = load_lines(path)
    parts, commit = load_parts(data), provenance()["commit"]
    logs: dict[tuple[object, ...], Logs] = {}
    for variant, setting, seed in plan(data, lines, settings.seeds, settings.only):
        if not budget.has_room():
            return False
        if setting.reading not in logs:  # the last one is enough: neighbours read alike
            logs = {setting.reading: build_logs(parts, data, setting)}
        begin = time.monotonic()
        line = measure(data, setting, seed, logs[setting.reading])
        budget.spend(time.monotonic() - begin)
        lines.append({**line, "commit": commit})
        append_line(path, lines[-1])
        reached = {name: line["validation"][name] for name in SHOWN if "failed" not in line}
        where = {"dataset": data.name, "factor": variant.factor, "row": variant.name, "seed": seed}
        log.info("run", **where, **reached, seconds=line["seconds"])
    return True


def main() -> int:
    """Exit code 0 when all is there, 3 when the budget ended it."""
    torch.set_num_threads(1)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    settings = parse(ExperimentSettings)
    for kind, given, known in (
        ("data set", settings.datasets, list(DATASETS)),
        ("factor", settings.only, _factors(settings.datasets)),
    ):
        for name in given:
            if name not in known:
                sys.exit(
                    f"{name!r} is no {kind} of bench/lab/grid.py, which has {', '.join(known)}"
                )
    budget = Budget(settings.budget_minutes)
    done = [run_missing(DATASETS[name], settings, budget) for name in settings.datasets]
    return 0 if all(done) else 3


def _factors(datasets: Sequence[str]) -> list[str]:
    rows = [row for name in datasets if name in DATASETS for row in variants(DATASETS[name])]
    return list(dict.fromkeys(row.factor for row in rows))


if __name__ == "__main__":
    sys.exit(main())
