"""Counts that decay, against the sum over all clicks."""

from random import Random

import pytest

from stream.live.counts import Decayed, ItemCounts, transitions
from stream.live.rules import MAX_SUCCESSORS, Rules

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


def after(rules: Rules, before: Rules) -> ItemCounts:
    """An item that "old" has followed for 200 ticks and "new" for 50; each batch is one of them."""
    counts = ItemCounts(before, TICK_MS)
    for tick in range(1, 251):
        of_batch = before if tick <= 200 else rules
        counts = ItemCounts.decode(of_batch, counts.encode())
        counts.count("old" if tick <= 200 else "new", 1, tick * TICK_MS)
    return counts


TICK_MS = 600_000


@pytest.mark.parametrize("scale", [2, 4, 400])
def test_counts_of_another_time_scale_do_not_bury_what_comes_after(scale: int) -> None:
    """As where a new bundle has another one. As of the first click, those of 50 half-lives were
    2^50 times as much as those of the new scale, whose clicks were one in 10 million."""
    before = Rules(4 * TICK_MS, TICK_MS, excludes_seen=False)
    for rules in (
        Rules(4 * TICK_MS * scale, TICK_MS, False),
        Rules(4 * TICK_MS // scale, TICK_MS, False),
    ):
        found, right = after(rules, before).successors, after(rules, rules).successors
        for rate in range(len(right.totals)):
            share = right.weights["new"][rate] / right.totals[rate]
            assert found.weights["new"][rate] / found.totals[rate] >= 0.6 * share


def test_a_click_follows_the_last_three_items_and_they_follow_it_a_little() -> None:
    assert [*transitions("vwxyz", "a")] == [
        *(("z", "a", 1.0), ("a", "z", 0.1)),
        *(("y", "a", 0.5), ("a", "y", 0.05)),
        *(("x", "a", 0.25), ("a", "x", 0.025)),
    ]
    assert [*transitions("xa", "a")] == [("x", "a", 0.5), ("a", "x", 0.05)]
    assert [*transitions("", "a")] == []
