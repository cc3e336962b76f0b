"""Counts that decay, against the sum over all clicks."""

from random import Random

import pytest

from stream.live.counts import Decayed, transitions
from stream.live.rules import MAX_SUCCESSORS

HALF_LIVES_MS = (1_000.0, 8_000.0)


@pytest.mark.parametrize("span_ms", [5_000, 50_000_000])
def test_counts_are_the_sum_of_what_is_left_of_each_click_late_ones_too(span_ms: int) -> None:
    random, counts = Random(1), Decayed[str](HALF_LIVES_MS, 0)
    clicks = [(random.choice("abc"), random.random(), random.randrange(span_ms)) for _ in range(99)]
    clicks.sort(key=lambda click: click[2] + random.random() * 2_000)  # some come late
    for click in clicks:
        counts.add(*click)
    now_ms = span_ms
    for rate, half_life_ms in enumerate(HALF_LIVES_MS):
        factor = counts.factors(now_ms)[rate]
        left = [(key, w * 0.5 ** ((now_ms - at) / half_life_ms)) for key, w, at in clicks]
        for key in "abc":
            expected = sum(w for other, w in left if other == key)
            assert counts.weights[key][rate] * factor == pytest.approx(expected, abs=1e-12)
        assert counts.totals[rate] * factor == pytest.approx(sum(w for _, w in left), abs=1e-12)


def test_beyond_so_many_successors_the_least_are_dropped_and_the_total_keeps_them() -> None:
    counts = Decayed[int](HALF_LIVES_MS, 0)
    for key in range(MAX_SUCCESSORS + 1):
        counts.add(key, 1.0 + key, 0)
    assert len(counts.weights) == MAX_SUCCESSORS * 3 // 4 + 1
    assert min(counts.weights) == MAX_SUCCESSORS // 4
    assert counts.totals[0] == sum(1.0 + key for key in range(MAX_SUCCESSORS + 1))


def test_a_click_follows_the_last_three_items_and_they_follow_it_a_little() -> None:
    assert [*transitions("vwxyz", "a")] == [
        *(("z", "a", 1.0), ("a", "z", 0.1)),
        *(("y", "a", 0.5), ("a", "y", 0.05)),
        *(("x", "a", 0.25), ("a", "x", 0.025)),
    ]
    assert [*transitions("xa", "a")] == [("x", "a", 0.5), ("a", "x", 0.05)]
    assert [*transitions("", "a")] == []
