"""From rows to figures: medians, the rates a contender can bear, ratios by round, going on."""

from pathlib import Path
from typing import Any

import pytest

from bench.serving.runs import Runs, rates, ratios, summary


def backlog(name: str, number: int, rate: float, worker: float = 100.0) -> dict[str, Any]:
    cpu = {"worker": worker, "broker": 50.0}
    what = {"kind": "backlog", "contender": name, "round": number}
    return what | {"clicks_per_second": rate, "cpu_us_per_click": cpu}


def latency(name: str, number: int, p50: float, worker: float, rate: int = 1000) -> dict[str, Any]:
    what = {"kind": "latency", "contender": name, "rate": rate, "round": number}
    cpu = {"worker": worker, "broker": 300.0}
    return what | {"latency_ms": {"p50": p50, "p99": 10 * p50}, "cpu_us_per_click": cpu}


PRODUCER = {"kind": "producer", "contender": "producer", "rate": 1000, "round": 1}


def test_a_ratio_is_our_figure_over_theirs_in_the_same_round() -> None:
    ours = {"1000": [latency("a", 1, 3.0, 100), latency("a", 2, 4.0, 100)]}
    theirs = {"1000": [latency("b", 2, 8.0, 500), latency("b", 1, 4.0, 900)]}
    found = ratios(ours, theirs, {"1000": 200.0})
    assert found["p50"] == {"1000": {"median": 0.625, "rounds": [0.75, 0.5]}}
    assert found["p99"] == found["p50"]
    assert found["cpu"]["1000"]["rounds"] == [0.333, 0.5]  # 400 / 1,200 and 400 / 800
    assert found["cpu_less_producer"]["1000"]["rounds"] == [0.2, 0.333]


def test_loads_and_rounds_that_one_side_lacks_have_no_ratio() -> None:
    ours = {"1000": [latency("a", 1, 3.0, 100), latency("a", 2, 4.0, 100)], "400": []}
    assert ratios(ours, {"400": [latency("b", 1, 1.0, 1, rate=400)]}, {}) == {}
    assert ratios(ours, {"1000": [latency("b", 2, 8.0, 500)]}, {})["p50"]["1000"]["rounds"] == [0.5]


def test_medians_stand_by_contender_and_load_and_a_family_by_its_best_variant() -> None:
    rows = [
        *(backlog("nextclick", n, rate) for n, rate in enumerate([900.0, 4000.0, 3000.0])),
        *(backlog("quix-0.05", n, 700.0) for n in range(3)),
        *(backlog("quix-0.5", n, 1000.0) for n in range(3)),
        *(latency("quix-0.5", n, p50, 900, rate=500) for n, p50 in enumerate([7.0, 5.0, 6.0])),
        PRODUCER | {"cpu_us_per_click": {"broker": 260.0}},
    ]
    found = summary(rows)
    assert found["clicks_per_second"] == {"nextclick": 3000.0, "quix": 1000.0}
    assert found["variants"] == {"quix-0.05": 700.0, "quix-0.5": 1000.0}
    assert found["best_variants"] == {"quix": "quix-0.5"}
    assert found["latency_ms"] == {"nextclick": {}, "quix": {"500": {"p50": 6.0, "p99": 60.0}}}
    assert found["cpu_us_per_click"]["quix"] == {
        "backlog": {"worker": 100.0, "broker": 50.0},
        "500": {"worker": 900.0, "broker": 300.0},
    }
    assert found["producer_us_of_broker_per_click"] == {"1000": 260.0}
    speed = found["ratios"]["nextclick:quix"]["clicks_per_second"]["backlog"]
    assert speed == {"median": 3.0, "rounds": [0.9, 4.0, 3.0]}
    assert list(found["ratios"]) == ["nextclick:quix"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("before", [1000, 1400]),  # half of its own 2,790, to the next 50
        ("nextclick", [1000, 1400]),
        ("quix-0.1", [1000]),  # bears 1,000 of 1,500, but not 1,400
        ("naive", [250]),  # bears neither: half of its own
    ],
)
def test_latency_is_measured_at_rates_that_a_contender_can_bear(
    name: str, expected: list[int]
) -> None:
    saturation = {"before": 2790.0, "nextclick": 5000.0, "quix-0.1": 1500.0, "naive": 470.0}
    assert rates(name, saturation) == expected


def test_half_of_the_older_worker_is_1000_where_it_is_nearly_that() -> None:
    assert rates("nextclick", {"before": 2150.0, "nextclick": 5000.0}) == [1000]
    assert rates("nextclick", {"nextclick": 5000.0}) == [1000]


def test_a_command_that_starts_again_measures_only_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    calls: list[int] = []

    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"clicks_per_second": float(len(calls))}

    first = Runs(path).row({"contender": "a", "round": 1}, measure)
    again = Runs(path)
    assert again.row({"contender": "a", "round": 1}, measure) == first
    assert again.row({"contender": "a", "round": 2}, measure)["clicks_per_second"] == 2.0
    assert len(calls) == 2 and Runs(path).rows == again.rows
