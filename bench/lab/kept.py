"""What the tables say of a variant: means over seeds, intervals and paired tests over sessions.

A figure's interval and test are over sessions with the seeds as they are; how far seeds lie apart
is shown by the least and the most. A row is made once, where the ranks of its runs are, and kept as
one line of `bench/results/tables/<data set>.jsonl`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from bench.fitting import SHOWN
from bench.lab.experiments import RANKS, chosen, ranks_path
from bench.lab.grid import BASE, DataSet, Setting, Variant, variants
from bench.lab.run import Line, build_logs, key_of, load_parts
from train.fit.loop import MONITOR
from train.measure.ranking import Ranks, ranks_of
from train.measure.significance import compare, estimate

Row = dict[str, Any]


def load_rows(path: Path) -> list[Row]:
    """The kept rows, in the order of the tables."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, kept: Sequence[Row], measured: Sequence[Row]) -> None:
    """Replace the rows that were measured again, and add those that are new."""
    rows = {(row["factor"], row["name"]): row for row in (*kept, *measured)}
    factors = list(dict.fromkeys(factor for factor, _ in rows))
    ordered = sorted(rows.values(), key=lambda row: factors.index(row["factor"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in ordered), encoding="utf-8")


def merged(seeds: Sequence[Ranks]) -> Ranks:
    """The predictions of several seeds as those of one model that is right as often as their mean.

    A session's predictions are neighbours, so that a resampled session brings those of all seeds.
    """
    columns = {
        name: np.concatenate([getattr(ranks, name) for ranks in seeds])
        for name in (field.name for field in fields(Ranks))
    }
    order = np.argsort(columns["session"], kind="stable")
    return Ranks(**{name: column[order] for name, column in columns.items()})


class Kept:
    """The runs of a data set, and the ranks of those that were made here."""

    def __init__(self, data: DataSet, lines: Sequence[Line], folder: Path = RANKS) -> None:
        self.data, self.lines, self._folder = data, lines, folder
        self._by_run = {(line["key"], line["seed"]): line for line in lines}
        logs = build_logs(load_parts(data), data, BASE)
        splits = logs.splits if logs.again is None else logs.again.splits
        self.split = list(splits)[-1]
        """What the tables are of: the test, or else the validation."""
        sessions = splits[self.split].sessions
        self._predictions = ranks_of(sessions, np.zeros_like(sessions.item_index))

    def line(self, setting: Setting, seed: int) -> Line:
        return self._by_run[key_of(self.data, setting), seed]

    def seeds(self, setting: Setting) -> list[int]:
        """Those whose runs succeeded."""
        key = key_of(self.data, setting)
        runs = self._by_run.items()
        return sorted(seed for (k, seed), line in runs if k == key and "failed" not in line)

    def has_ranks(self, setting: Setting, seeds: Sequence[int]) -> bool:
        key = key_of(self.data, setting)
        return all(ranks_path(self.data, key, seed, self._folder).exists() for seed in seeds)

    def ranks(self, setting: Setting, seeds: Sequence[int]) -> Ranks:
        """Of all those seeds together."""
        key = key_of(self.data, setting)
        ranks = (np.load(ranks_path(self.data, key, seed, self._folder)) for seed in seeds)
        return merged([replace(self._predictions, rank=rank.astype(np.int64)) for rank in ranks])


def measure_rows(kept: Kept) -> Iterator[Row]:
    """A row for each variant whose runs, and those it is compared with, have their ranks here."""
    for variant in variants(kept.data):
        if variant.factor == "base":
            continue
        setting = chosen(kept.data, variant, kept.lines)
        row: Row = {"factor": variant.factor, "name": variant.name}
        if len(variant.tries) > 1:
            row["tried"] = dict(variant.tries[variant.settings.index(setting)])
        row["key"], seeds = key_of(kept.data, setting), kept.seeds(setting)
        if _has_failed(kept, variant):
            yield row | {"failed": True}
        elif seeds and kept.has_ranks(setting, seeds):
            common = [seed for seed in seeds if seed in kept.seeds(variant.against)]
            if kept.has_ranks(variant.against, common):
                yield row | _figures(kept, setting, variant.against, seeds, common)


def _has_failed(kept: Kept, variant: Variant) -> bool:
    """It was tried, and no try succeeded."""
    keys = [key_of(kept.data, setting) for setting in variant.settings]
    own = [line for line in kept.lines if line["key"] in keys]
    return bool(own) and all("failed" in line for line in own)


def _figures(
    kept: Kept, setting: Setting, against: Setting, seeds: list[int], common: list[int]
) -> Row:
    lines = [kept.line(setting, seed) for seed in seeds]
    row: Row = {
        "seeds": seeds,
        "split": kept.split,
        "seconds": round(mean(line["seconds"] for line in lines), 1),
        "validation": round(mean(line["validation"][MONITOR] for line in lines), 5),
    }
    ranks = kept.ranks(setting, seeds)
    figures = estimate(ranks, SHOWN)[0].figures
    compared = common and key_of(kept.data, setting) != key_of(kept.data, against)
    for metric in SHOWN:
        of_seeds = [line[kept.split][metric] for line in lines]
        spread = {"least": min(of_seeds), "most": max(of_seeds)}
        row[metric] = _rounded(figures[metric]._asdict() | spread)
        if compared:
            own, other = (kept.ranks(s, common) for s in (setting, against))
            row[metric]["difference"] = _rounded(compare(own, other, metric)._asdict())
    return row


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(figure, 5) for name, figure in figures.items()}
