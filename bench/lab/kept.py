"""What kept runs say of a variant: means over seeds, intervals and paired tests over sessions.

A figure's interval and test are over sessions with the seeds as they are; how far seeds lie apart
stands beside it as the least and the most.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from statistics import mean
from typing import Any

import numpy as np

from bench.lab.experiments import chosen
from bench.lab.grid import BASE, DataSet, Setting, Variant, variants
from bench.lab.run import SHOWN, Line, build_logs, key_of, load_parts, unpacked
from train.fit.loop import MONITOR
from train.measure.ranks import Ranks, ranks_of
from train.measure.significance import compare, estimate, holm

Row = dict[str, Any]
Table = dict[str, Any]


def merged(seeds: Sequence[Ranks]) -> Ranks:
    """The predictions of several seeds as those of one model that is right as often as their mean.

    A session's predictions stand together, so that a resampled session brings those of all seeds.
    """
    columns = {
        name: np.concatenate([getattr(ranks, name) for ranks in seeds])
        for name in (field.name for field in fields(Ranks))
    }
    order = np.argsort(columns["session"], kind="stable")
    return Ranks(**{name: column[order] for name, column in columns.items()})


def predictions(data: DataSet) -> tuple[str, Ranks]:
    """What all runs of a data set are asked last, the test or else the validation, without ranks.

    Exits with a sentence where the data are not there.
    """
    logs = build_logs(load_parts(data), data, BASE)
    splits = logs.splits if logs.again is None else logs.again.splits
    split = list(splits)[-1]
    sessions = splits[split].sessions
    return split, ranks_of(sessions, np.zeros_like(sessions.item_index))


class Kept:
    """The runs of a data set that are kept, and what they predicted."""

    def __init__(
        self, data: DataSet, lines: Sequence[Line], split: str, predictions: Ranks
    ) -> None:
        self.data, self.lines, self.split = data, lines, split
        self._predictions = predictions
        self._by_run = {(line["key"], line["seed"]): line for line in lines}

    def seeds(self, setting: Setting) -> list[int]:
        """With which it was run to an end."""
        key = key_of(self.data, setting)
        runs = self._by_run.items()
        return sorted(seed for (k, seed), line in runs if k == key and "failed" not in line)

    def has_failed(self, variant: Variant) -> bool:
        """No try of it came to an end, and one was made."""
        keys = [key_of(self.data, setting) for setting in variant.settings]
        own = [line for line in self.lines if line["key"] in keys]
        return bool(own) and all("failed" in line for line in own)

    def line(self, setting: Setting, seed: int) -> Line:
        return self._by_run[key_of(self.data, setting), seed]

    def ranks(self, setting: Setting, seeds: Sequence[int]) -> Ranks:
        """Of all those seeds together."""
        places = (unpacked(self.line(setting, seed)["places"]) for seed in seeds)
        return merged([replace(self._predictions, rank=rank) for rank in places])


def measure_tables(kept: Kept) -> Iterator[Table]:
    """A table a factor, of the rows that were run."""
    rows = variants(kept.data)
    measured: dict[tuple[str, ...], Row] = {}
    for factor in dict.fromkeys(row.factor for row in rows if row.factor != "base"):
        table: list[Row] = []
        for variant in rows:
            if variant.factor != factor:
                continue
            setting, against = chosen(kept.data, variant, kept.lines), variant.against
            seeds = tuple(kept.seeds(setting))
            named: Row = {"name": variant.name, "tried": _tried(variant, setting)}
            if kept.has_failed(variant):
                table.append(named | {"is_base": False, "failed": True})
            if not seeds:
                continue
            run = tuple(key_of(kept.data, s) for s in (setting, against))
            if run not in measured:
                measured[run] = _measure(kept, setting, against, seeds)
            table.append(named | deepcopy(measured[run]))
        if any(not row["is_base"] for row in table):
            _correct(table)
            where = {"dataset": kept.data.name, "factor": factor, "split": kept.split}
            yield {**where, "rows": table}


def _tried(variant: Variant, setting: Setting) -> dict[str, Any]:
    """What validation picked of the variant's tries."""
    if len(variant.tries) < 2:
        return {}
    return dict(variant.tries[variant.settings.index(setting)])


def _measure(kept: Kept, setting: Setting, against: Setting, seeds: tuple[int, ...]) -> Row:
    """The figures of one row, and what it has over another with the same seeds."""
    key = key_of(kept.data, setting)
    ranks = kept.ranks(setting, seeds)
    figures = estimate(ranks, SHOWN)[0].figures
    lines = [kept.line(setting, seed) for seed in seeds]
    row: Row = {
        "key": key,
        "is_base": key == key_of(kept.data, BASE),
        "seeds": list(seeds),
        "seconds": mean(line["seconds"] for line in lines),
        "validation": mean(line["validation"][MONITOR] for line in lines),
    }
    for metric in SHOWN:
        of_seeds = [line[kept.split][metric] for line in lines]
        spread = {"least": min(of_seeds), "most": max(of_seeds)}
        row[metric] = figures[metric]._asdict() | spread
    common = [seed for seed in seeds if seed in kept.seeds(against)]
    if common and key != key_of(kept.data, against):
        own, other = (kept.ranks(s, common) for s in (setting, against))
        for metric in SHOWN:
            row[metric]["difference"] = compare(own, other, metric)._asdict()
    return row


def _correct(table: list[Row]) -> None:
    """p-values corrected for the rows of the table, by metric."""
    for metric in SHOWN:
        figures = [row[metric] for row in table if "failed" not in row]
        differences = [figure["difference"] for figure in figures if "difference" in figure]
        corrected = holm([difference["p_value"] for difference in differences])
        for difference, p_value in zip(differences, corrected, strict=True):
            difference["p_holm"] = p_value
