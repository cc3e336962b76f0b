"""The tables of docs/experiments.md from the kept runs: ``python -m bench.lab.tables``.

`bench/results/experiments/tables.json` gets every figure with its interval; docs/experiments.md
gets it as Markdown between two markers. The data sets say which sessions the kept places are of;
with ``--rendered-only`` the page is written from tables.json, and they are not needed.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, SettingsConfigDict

from bench.lab.experiments import RESULTS, load_lines
from bench.lab.grid import DATASETS
from bench.lab.kept import Kept, Row, Table, measure_tables, predictions
from bench.lab.run import SHOWN
from bench.settings import parse

PAGE = Path(__file__).parents[2] / "docs" / "experiments.md"
BASELINES = Path(__file__).parents[1] / "results" / "baselines.json"
TABLES = RESULTS / "tables.json"
BEGIN = "<!-- Written by python -m bench.lab.tables, down to the next such line. -->"
END = "<!-- Written by python -m bench.lab.tables, up to here. -->"
SIGNIFICANT = 0.05

LEGEND = (
    "Recall@20 and MRR@20 are means over the seeds, with their 95 % interval over resampled "
    "sessions in brackets; beside them stand the lowest and the highest seed, or 1 if there was "
    "one.\n"
    "The difference is a paired one over the seeds that both have, with its interval: to the base; "
    "of a peeking row to the same fields without peeking; of a cell with context to the same cell "
    "without; of learning from the newest part with context to the same without context.\n"
    "A star: a sign-flip test over sessions gives p < .05 after Holm's "
    "correction for the rows of the table.\n"
    "In brackets behind a name stands what validation chose with seed 1; s is seconds of one core "
    "for a run.\n"
    "Networks learn from the training file without its newest part, which picks the epoch (on "
    "globo-5d, and where a row says so, then again from all of it for the test); the baselines "
    "beside a test, and the `gru` and hybrids among them, from all of it, and are asked about the "
    "items of all of it."
)


class TablesSettings(BaseSettings):
    """Write the tables of the experiments."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_prog_name="python -m bench.lab.tables",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        use_attribute_docstrings=True,
    )
    rendered_only: bool = False
    """Write the page from tables.json as it stands."""


def main() -> None:
    settings = parse(TablesSettings)
    if not settings.rendered_only:
        tables: list[Table] = []
        for name, data in DATASETS.items():
            if lines := load_lines(RESULTS / f"{name}.jsonl"):
                tables += measure_tables(Kept(data, lines, *predictions(data)))
        TABLES.write_text(json.dumps(_rounded(tables), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(placed(PAGE.read_text(encoding="utf-8"), rendered()), encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {name: _rounded(of) for name, of in value.items()}
    return [_rounded(of) for of in value] if isinstance(value, list) else value


def rendered() -> str:
    """The block as the kept tables and baselines say it."""
    tables = json.loads(TABLES.read_text(encoding="utf-8"))
    baselines = json.loads(BASELINES.read_text(encoding="utf-8")) if BASELINES.exists() else {}
    return render(tables, baselines.get("rows", []))


def placed(page: str, block: str) -> str:
    """The page with the block between its markers; behind all else where it has none."""
    before, begin, rest = page.partition(BEGIN)
    after = rest.partition(END)[2] if begin else "\n"
    return f"{before.rstrip()}\n\n{BEGIN}\n\n{block}\n\n{END}{after}"


def render(tables: Sequence[Table], baselines: Sequence[Row]) -> str:
    """All tables as Markdown, by data set and factor, the test's where there is one."""
    text: list[str] = [LEGEND, ""]
    for data in DATASETS.values():
        own = [table for table in tables if table["dataset"] == data.name]
        if not own:
            continue
        split = own[0]["split"]
        text += [f"### {data.name}, {split}", ""]
        text += ["| model | Recall@20 | MRR@20 |", "|---|---|---|"]
        for row in baselines:
            if row["dataset"] == data.name and row["split"] == split:
                reached = " | ".join(_short(row[metric]) for metric in SHOWN)
                text.append(f"| {row['model']} | {reached} |")
        for name, row in _networks(own):
            reached = " | ".join(_short(row[metric]["value"]) for metric in SHOWN)
            text.append(f"| **{name}** | {reached} |")
        text.append("")
        for table in own:
            text += [*_render(table), ""]
    return "\n".join(text).rstrip()


def _networks(tables: Sequence[Table]) -> Iterator[tuple[str, Row]]:
    """The base, and the row that validates best of those that are no control and can be served."""
    rows = [
        (f"{table['factor']}: {row['name']}", row)
        for table in tables
        for row in table["rows"]
        if not ("failed" in row or "peeking" in table["factor"] or "shuffled" in row["name"])
    ]
    base = next((row for _, row in rows if row["is_base"]), None)
    if base is not None:
        yield "the base", base
    name, best = max(rows, key=lambda named: float(named[1]["validation"]))
    if not best["is_base"]:
        yield f"best by validation, {name}", best


def _render(table: Table) -> Iterator[str]:
    yield (
        f"| {table['factor']} | Recall@20 | seeds | difference | MRR@20 | seeds | difference | s |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for row in table["rows"]:
        cells = [f"**{row['name']}** (base)" if row["is_base"] else row["name"]]
        if row["tried"]:
            cells[0] += " (" + ", ".join(f"{n} {v:g}" for n, v in row["tried"].items()) + ")"
        if "failed" in row:
            yield f"| {cells[0]} | diverges | | | | | | |"
            continue
        for metric in SHOWN:
            figure = row[metric]
            cells.append(f"{_short(figure['value'])} [{_range(figure['low'], figure['high'])}]")
            one = len(row["seeds"]) == 1
            cells.append("1" if one else _range(figure["least"], figure["most"]))
            cells.append(_difference(figure.get("difference")))
        yield "| " + " | ".join([*cells, f"{row['seconds']:.0f}"]) + " |"


def _difference(difference: dict[str, float] | None) -> str:
    if difference is None:
        return ""
    value, low, high = (f"{difference[name]:+.4f}" for name in ("value", "low", "high"))
    mark = "*" if difference["p_holm"] < SIGNIFICANT else ""
    return f"{value} [{low}, {high}]{mark}".replace("0.", ".")


def _short(share: float) -> str:
    return f"{share:.4f}".removeprefix("0")


def _range(low: float, high: float) -> str:
    return f"{_short(low)}, {_short(high)}"


if __name__ == "__main__":
    main()
