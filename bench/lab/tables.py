"""A page of tables for each data set from the kept rows: ``python -m bench.lab.tables``.

`docs/results/<data set>.md` is written from `bench/results/tables/<data set>.jsonl`, whose rows
come from the runs in `bench/results/experiments`, and from `bench/results/baselines.json`. The code
that made those runs is gone, as the questions are answered; the pages say in which commit it is.

A figure's interval and test are over sessions with the seeds as they are; how far seeds lie apart
is shown by the least and the most.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.fitting import SHOWN
from bench.provenance import RESULTS
from train.command import Settings, TrainError, run_command
from train.measure.significance import holm

PAGES = Path(__file__).parents[2] / "docs" / "results"
ROWS = RESULTS / "tables"
BASELINES = RESULTS / "baselines.json"
SIGNIFICANT = 0.05
GRID, GONE = "19ea6d2", "8ec5a42"
"""The last commits with the code of the grid, and with that of rows marked `gone`."""

LEGEND = (
    Path(__file__).with_name("legend.md").read_text("utf-8").format(GRID=GRID, GONE=GONE).strip()
)

Row = dict[str, Any]


class TablesSettings(Settings):
    """Write the tables of the experiments."""

    check: bool = False
    """Write nothing; exit with code 1 if a page differs from what would be written."""


def run(settings: TablesSettings) -> None:
    stale = []
    baselines = json.loads(BASELINES.read_text(encoding="utf-8"))["rows"]
    for path in sorted(ROWS.iterdir()):
        page = PAGES / f"{path.stem}.md"
        own = [row for row in baselines if row["dataset"] == path.stem]
        text = render(path.stem, load_rows(path), own)
        if not settings.check:
            PAGES.mkdir(exist_ok=True)
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            stale.append(str(page))
    if stale:
        raise TrainError(f"not current, run `python -m bench.lab.tables`: {', '.join(stale)}")


def load_rows(path: Path) -> list[Row]:
    """The kept rows, in the order of the tables."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def render(dataset: str, rows: Sequence[Row], baselines: Sequence[Row]) -> str:
    """All tables of a data set as Markdown: of its test, or of its validation if it has none."""
    split = next(row["split"] for row in rows if "failed" not in row)
    now, gone = ([row for row in rows if ("gone" in row) == is_gone] for is_gone in (False, True))
    text = [f"# {dataset}, {split}", "", LEGEND, ""]
    text += ["| model | Recall@20 | MRR@20 |", "|---|---|---|"]
    for row in baselines:
        if row["split"] == split:
            text.append(f"| {row['model']} | {' | '.join(_short(row[m]) for m in SHOWN)} |")
    for name, row in _networks(now):
        text.append(f"| **{name}** | {' | '.join(_short(row[m]['value']) for m in SHOWN)} |")
    text.append("")
    corrected = _corrected(rows)
    for shown, title in ((now, ""), (gone, f"## Last in {GONE}")):
        if shown and title:
            text += [title, ""]
        for factor in dict.fromkeys(row["factor"] for row in shown):
            table = [row for row in shown if row["factor"] == factor]
            text += [*_render(factor, table, corrected), ""]
    return "\n".join(text)


def _networks(rows: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    """The base, and the row that validates best, controls apart."""
    measured = [row for row in rows if "failed" not in row and "shuffled" not in row["name"]]
    base = next((row for row in measured if row["key"] == "base"), None)
    if base is not None:
        yield "the base", base
    best = max(measured, key=lambda row: float(row["validation"]))
    if best["key"] != "base":
        yield f"best by validation, {best['factor']}: {best['name']}", best


def _corrected(rows: Sequence[Row]) -> dict[tuple[str, str, str], float]:
    """p-values by factor, name and metric, corrected for all rows that the factor ever had."""
    result: dict[tuple[str, str, str], float] = {}
    for factor in {row["factor"] for row in rows}:
        for metric in SHOWN:
            tested = {
                (factor, row["name"], metric): row[metric]["difference"]["p_value"]
                for row in rows
                if row["factor"] == factor and "difference" in row.get(metric, {})
            }
            result |= dict(zip(tested, holm([*tested.values()]), strict=True))
    return result


def _render(
    factor: str, rows: Sequence[Row], corrected: dict[tuple[str, str, str], float]
) -> Iterator[str]:
    yield f"| {factor} | Recall@20 | seeds | difference | MRR@20 | seeds | difference | s |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        name = f"**{row['name']}** (base)" if row["key"] == "base" else row["name"]
        if row.get("tried"):
            name += " (" + ", ".join(f"{n} {v:g}" for n, v in row["tried"].items()) + ")"
        if "failed" in row:
            yield f"| {name} | diverges | | | | | | |"
            continue
        cells = [name]
        for metric in SHOWN:
            figure, difference = row[metric], ""
            cells.append(f"{_short(figure['value'])} [{_range(figure['low'], figure['high'])}]")
            one = len(row["seeds"]) == 1
            cells.append("1" if one else _range(figure["least"], figure["most"]))
            if found := figure.get("difference"):
                value, low, high = (f"{found[n]:+.4f}" for n in ("value", "low", "high"))
                star = "*" if corrected[factor, row["name"], metric] < SIGNIFICANT else ""
                difference = f"{value} [{low}, {high}]{star}".replace("0.", ".")
            cells.append(difference)
        yield "| " + " | ".join([*cells, f"{row['seconds']:.0f}"]) + " |"


def _short(share: float) -> str:
    return f"{share:.4f}".removeprefix("0")


def _range(low: float, high: float) -> str:
    return f"{_short(low)}, {_short(high)}"


if __name__ == "__main__":
    sys.exit(run_command(TablesSettings, run))
