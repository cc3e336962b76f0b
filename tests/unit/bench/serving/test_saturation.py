"""Curves of latency against load, and their picture."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.serving.saturation import curves, draw


def row(contender: str, rate: int, p50: float, last_answer_ms: float = 5.0) -> dict[str, Any]:
    what = {"kind": "latency", "contender": contender, "rate": rate}
    return what | {"latency_ms": {"p50": p50, "p99": 9 * p50}, "last_answer_ms": last_answer_ms}


ROWS = [
    {"kind": "backlog", "contender": "before", "clicks_per_second": 900.0},
    *(row("before", 800, 200.0, 9000.0), row("before", 300, 20.0), row("quix-0.1", 90, 60.0)),
    *(row("before", 300, 40.0), row("before", 300, 30.0)),
]


def test_a_point_is_the_median_of_its_rounds_and_points_go_by_load() -> None:
    found = curves(ROWS)
    assert [(point["rate"], point["p50"]) for point in found["before"]] == [(300, 30.0), (800, 200)]
    assert found["quix"] == [{"rate": 90, "p50": 60.0, "p99": 540.0, "last_answer_ms": 5.0}]


def test_a_load_that_was_too_much_is_hollow_and_the_picture_is_the_same_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "picture.svg"
    draw(path, curves(ROWS))
    first = path.read_text()
    ElementTree.fromstring(first)
    assert first.count("fill: #ffffff; stroke: #d55e00") == 2  # its p50 and its p99
    draw(path, curves(ROWS))
    assert path.read_text() == first
