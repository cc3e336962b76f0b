"""What was measured, row by row, and the figures and ratios that are made of it."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.serving.rounds import Row

RATE = 1000
"""Clicks/s at which every contender that can bear it is measured."""
BEARABLE = 0.75
"""Of the clicks/s of a backlog: beside producer and reader, with smaller batches, the rest is
out of reach."""
PAIRS = (
    *(("nextclick", "before"), ("constant", "constant_before"), ("nextclick", "naive")),
    *(("nextclick", "quix"), ("partitions_64", "nextclick"), ("live", "nextclick")),
)


class Runs:
    """Rows, each a line of a file: a command that starts again goes on where it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]

    def row(self, what: Row, measure: Callable[[], Row]) -> Row:
        """The row of these names, measured now unless the file has it."""
        for row in self.rows:
            if what.items() <= row.items():
                return row
        row = what | measure()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        return row


def saturations(rows: Iterable[Row]) -> dict[str, float]:
    """Clicks/s of a backlog by contender: medians."""
    found = defaultdict(list)
    for row in rows:
        if row["kind"] == "backlog":
            found[row["contender"]].append(row["clicks_per_second"])
    return {name: round(median(rates), 1) for name, rates in found.items()}


def family(name: str) -> str:
    """A contender's name without its variant: ``quix-0.1`` is a quix."""
    return name.partition("-")[0]


def best_variants(saturation: Mapping[str, float]) -> dict[str, str]:
    """By family the variant with the most clicks/s."""
    return {family(name): name for name in sorted(saturation, key=lambda name: saturation[name])}


def rates(name: str, saturation: Mapping[str, float]) -> list[int]:
    """Clicks/s at which a contender's latency is measured: 1,000 and half of what the older worker
    bears. One that cannot bear either is measured at half of what it can."""
    wanted = {RATE}
    if "before" in saturation:
        half = _rounded(saturation["before"] / 2)
        wanted |= {half} if abs(half - RATE) > 0.1 * RATE else set()  # else it is the same
    borne = sorted(rate for rate in wanted if rate <= BEARABLE * saturation[name])
    return borne or [_rounded(saturation[name] / 2)]


def _rounded(rate: float) -> int:
    return max(50, round(rate / 50) * 50)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures as they are kept: medians by contender and load, and the ratios."""
    saturation = saturations(rows)
    best = best_variants(saturation)
    loads: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        name = family(row["contender"])
        if row["kind"] == "producer" or best.get(name) == row["contender"]:
            loads[name][load(row)].append(row)
    producer = loads.pop("producer", {})
    cpu = {name: _medians(own, "cpu_us_per_click") for name, own in loads.items()}
    alone = {at: own["broker"] for at, own in _medians(producer, "cpu_us_per_click").items()}
    return {
        "clicks_per_second": {name: saturation[best[name]] for name in loads},
        "variants": {name: rate for name, rate in saturation.items() if name != family(name)},
        "best_variants": {name: own for name, own in best.items() if name != own},
        "latency_ms": {name: _medians(own, "latency_ms") for name, own in loads.items()},
        "cpu_us_per_click": cpu,
        "producer_us_of_broker_per_click": alone,
        "ratios": {
            f"{ours}:{theirs}": ratios(loads[ours], loads[theirs], alone)
            for ours, theirs in PAIRS
            if ours in loads and theirs in loads
        },
    }


def load(row: Row) -> str:
    return "backlog" if row["kind"] == "backlog" else str(row["rate"])


def _medians(loads: Mapping[str, Sequence[Row]], figure: str) -> dict[str, dict[str, float]]:
    """Of each name within a figure, by the loads that have the figure."""
    found = {at: [row[figure] for row in own if figure in row] for at, own in loads.items()}
    return {
        at: {name: round(median(run[name] for run in own), 2) for name in own[0]}
        for at, own in found.items()
        if own
    }


def ratios(
    ours: Mapping[str, Sequence[Row]],
    theirs: Mapping[str, Sequence[Row]],
    producer_us: Mapping[str, float],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Our figures over theirs in the same round, by figure and load: each and their median.

    ``cpu`` is that of all processes but producer and reader; ``cpu_less_producer`` without the
    broker's work for the producer, which is the same for both.
    """

    def figures(row: Row) -> dict[str, float]:
        used = row["cpu_us_per_click"]
        cpu = used["worker"] + used["broker"] + used.get("items", 0.0)
        if row["kind"] == "backlog":
            return {"clicks_per_second": row["clicks_per_second"], "cpu": cpu}
        alone = producer_us.get(load(row))
        net = {} if alone is None else {"cpu_less_producer": cpu - alone}
        return {"cpu": cpu, **net, "p50": row["latency_ms"]["p50"], "p99": row["latency_ms"]["p99"]}

    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for at in ours:
        by_round = {row["round"]: figures(row) for row in theirs.get(at, ())}
        pairs = [(figures(row), by_round.get(row["round"])) for row in ours[at]]
        both = [(a, b) for a, b in pairs if b is not None]
        for name in both[0][0] if both else ():
            rounds = [round(a[name] / b[name], 3) for a, b in both]
            found[name][at] = {"median": round(median(rounds), 3), "rounds": rounds}
    return dict(found)
