"""The tables of the experiments, written from the kept rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.lab.tables import GONE, PAGES, ROWS, TablesSettings, load_rows, render, run
from bench.provenance import RESULTS
from train.command import TrainError


def row_of(name: str, value: float, **more: Any) -> dict[str, Any]:
    difference = {"value": 0.01, "low": 0.005, "high": 0.015, "p_value": 0.001}
    figure: dict[str, Any] = {"value": value, "low": value - 0.01, "high": value + 0.01}
    figure |= {"least": value - 0.002, "most": value + 0.002}
    row: dict[str, Any] = {
        "factor": "cell",
        "name": name,
        "key": name,
        "seeds": [1, 2],
        "split": "test",
    }
    row |= {"seconds": 3.2, "validation": value, "recall_at_20": figure, "mrr_at_20": figure}
    if name != "base":
        row["recall_at_20"] = figure | {"difference": difference}
    return row | more


def test_a_page_shows_every_row_with_its_interval_seeds_and_difference() -> None:
    failed = {"factor": "cell", "name": "too fast", "key": "too fast", "failed": True}
    tried = row_of("rnn", 0.4, tried={"learning_rate": 0.1})
    old = row_of("old", 0.3, gone=True)
    page = render("shop", [row_of("base", 0.5), tried, failed, old], [])
    assert page.startswith("# shop, test\n")
    assert "| **base** (base) | .5000 [.4900, .5100] | .4980, .5020 |  | .5000" in page
    assert "| rnn (learning_rate 0.1) | .4000 [.3900, .4100] | .3980, .4020 | " in page
    assert "+.0100 [+.0050, +.0150]* | .4000" in page
    assert "| too fast | diverges |" in page
    living, _, last = page.partition(f"## Last in {GONE}")
    assert "| old | .3000" in last and "| old |" not in living


@pytest.mark.parametrize("rows", sorted(ROWS.iterdir()), ids=lambda path: path.stem)
def test_every_row_comes_from_kept_runs(rows: Path) -> None:
    kept = (RESULTS / "experiments" / rows.name).read_text().splitlines()[1:]
    runs = {(run["key"], run["seed"]) for run in map(json.loads, kept)}
    assert {(row["key"], seed) for row in load_rows(rows) for seed in row.get("seeds", ())} <= runs


def test_the_pages_say_what_the_kept_rows_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorted(page.stem for page in PAGES.iterdir()) == sorted(p.stem for p in ROWS.iterdir())
    run(TablesSettings(check=True))  # raises where a page is not current
    monkeypatch.setattr("bench.lab.tables.PAGES", tmp_path)
    with pytest.raises(TrainError, match="not current"):
        run(TablesSettings(check=True))
