import math
import xml.etree.ElementTree as ET

import hypothesis.strategies as st
import pytest
from hypothesis import given

from train.measure.significance import Estimate
from train.report.plots import MARKERS, Series, _axis, bar, decimals, line_plot, swatch


@given(st.lists(st.floats(-1e6, 1e6), max_size=6))
def test_an_axis_holds_its_values_in_few_round_steps(values: list[float]) -> None:
    low, high, step = _axis(values)
    assert all(low - 1e-6 * step <= value <= high + 1e-6 * step for value in values)
    assert 1 <= round((high - low) / step) <= 7
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, ".1235"), (1.0, "1.0000"), (0.0, ".0000"), (-0.02, "\N{MINUS SIGN}.0200"),
     (-0.00001, ".0000"), (math.nan, "\N{EN DASH}")],
)  # fmt: skip
def test_shares_have_four_decimals(value: float, text: str) -> None:
    assert decimals(value) == text


def test_a_plot_is_well_formed_and_marks_every_value_with_its_interval() -> None:
    nothing = Estimate(math.nan, math.nan, math.nan)
    series = [
        Series('<i>"a"', 0, [Estimate(0.5, 0.4, 0.6), nothing, Estimate(0.7, 0.6, 0.8)]),
        Series("b", 5, [Estimate(0.2, math.nan, math.nan)] * 3, ringed=1),
    ]
    plot = str(line_plot("Recall@20", "clicks known", ["1", "2", "3+"], series, ["9", "8", "7"]))
    root = ET.fromstring(plot)
    assert len(root.findall(".//g[@class='dot']")) == 5
    assert len(root.findall(".//path[@class='whisker']")) == 2
    assert len(root.findall(".//circle[@class='ring']")) == 1
    titles = [title.text for title in root.iter("title")]
    assert titles[0] == '<i>"a", 1 clicks known: .5000 (.4000 to .6000)'
    assert "nan" not in plot


def test_a_plot_of_nothing_is_an_empty_one() -> None:
    nothing = [Estimate(math.nan, math.nan, math.nan)]
    root = ET.fromstring(str(line_plot("MRR@20", "x", ["1"], [Series("a", 0, nothing)])))
    assert not root.findall(".//g[@class='dot']")


def test_every_series_has_a_shape_of_its_own() -> None:
    assert len({str(swatch(colour)) for colour in range(len(MARKERS))}) == len(MARKERS)


def test_a_bar_is_as_long_as_its_share_of_the_largest() -> None:
    assert 'width="25.0"' in bar(Estimate(0.2, 0.1, 0.4), 0.8, best=False)
    assert 'width="0.0"' in bar(Estimate(math.nan, math.nan, math.nan), 0.8, best=False)
    assert "<path" not in bar(Estimate(0.2, math.nan, math.nan), 1.0, best=False)
