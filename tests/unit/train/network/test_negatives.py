import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from train.network.negatives import NegativeSampler, RowNumbers, has_negative, own_targets


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_draws_follow_support_to_the_power_of_alpha(alpha: float) -> None:
    support = np.array([1, 4, 0, 9, 16])
    sampler = NegativeSampler(support, alpha)
    weight = {0.0: [1, 1, 0, 1, 1], 0.5: [1, 2, 0, 3, 4], 1.0: [1, 4, 0, 9, 16]}[alpha]
    expected = np.array(weight) / sum(weight)
    np.testing.assert_allclose(sampler.probability, expected)
    n = 200_000
    drawn = np.bincount(sampler.draw(n, np.random.default_rng(5)), minlength=5) / n
    # Five standard deviations: 1 in 1.7 million right samplers would fail, and the seed is fixed.
    assert (np.abs(drawn - expected) <= 5 * np.sqrt(expected * (1 - expected) / n)).all()


def test_an_item_without_support_is_never_drawn_at_either_end() -> None:
    sampler = NegativeSampler(np.array([0, 3, 0, 5, 0]), alpha=0.0)
    edges = [0.0, 0.5, np.nextafter(1.0, 0.0)]

    class Edges(np.random.Generator):
        def random(self, n: int) -> np.ndarray:  # type: ignore[override]  # the one form we call
            return np.array(edges[:n])

    assert sampler.draw(3, Edges(np.random.PCG64(1))).tolist() == [1, 3, 3]


def test_blocks_hold_the_draws_of_one_stream() -> None:
    sampler = NegativeSampler(np.arange(1, 50), alpha=0.3)
    blocks = sampler.blocks(7, np.random.default_rng(1))
    first = [next(blocks) for _ in range(3)]
    assert all(block.shape == (7,) for block in first)
    again = sampler.blocks(7, np.random.default_rng(1))
    assert [block.tolist() for block in first] == [next(again).tolist() for _ in range(3)]
    assert first[0].tolist() != first[1].tolist()


def test_no_negatives_are_blocks_of_nothing() -> None:
    blocks = NegativeSampler(np.array([1, 1]), alpha=0.0).blocks(0, np.random.default_rng(1))
    assert next(blocks).tolist() == next(blocks).tolist() == []


def test_inclusion_is_the_chance_to_be_drawn_at_least_once() -> None:
    # Drawn with 1/2 in two draws, or a target with 1/4 in one session: 1 - 1/4 * 3/4 = 13/16.
    sampler = NegativeSampler(np.array([1, 3]), alpha=0.0)
    log_q = sampler.log_inclusion(n_negatives=2, batch_size=1)
    np.testing.assert_allclose(np.exp(log_q), [13 / 16, 1 - 1 / 4 * 1 / 4])


def test_inclusion_agrees_with_counting() -> None:
    support = np.array([1, 2, 5, 40, 200])
    sampler = NegativeSampler(support, alpha=0.75)
    rng = np.random.default_rng(7)
    targets = rng.choice(5, (20_000, 2), p=support / support.sum())
    negatives = sampler.draw(60_000, rng).reshape(-1, 3)
    included = [(np.hstack([targets, negatives]) == item).any(axis=1).mean() for item in range(5)]
    np.testing.assert_allclose(np.exp(sampler.log_inclusion(3, 2)), included, atol=0.015)


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.integers(0, 20), max_size=60))
def test_numbered_rows_are_distinct_and_lead_back_to_every_item(items: list[int]) -> None:
    numbers = RowNumbers(21)
    for given_items in (
        np.array(items, dtype=np.int64),
        np.array([3, 3, 1]),
    ):  # the marks are reused
        distinct, place = numbers.number(given_items)
        assert distinct.tolist() == list(dict.fromkeys(given_items.tolist())), "as they come"
        assert distinct[place].tolist() == given_items.tolist()


def test_a_sessions_other_targets_of_a_step_are_its_own() -> None:
    # Lanes 0 and 1 clicked on 5 then 6, and 7 twice; lane 0 alone had a third click, 5 again.
    row, own = own_targets([2, 2, 1], np.array([5, 7, 6, 7, 5]))
    assert list(zip(row.tolist(), own.tolist(), strict=True)) == [(0, 6), (2, 5), (2, 5), (4, 6)]


def test_a_row_has_a_negative_where_a_candidate_is_neither_its_target_nor_its_own() -> None:
    lanes, target = [2, 1], np.array([0, 1, 2])  # lane 0 clicks 0 and then 2, lane 1 clicks 1
    row, own = own_targets(lanes, target)
    assert has_negative(target, row, own, 3).tolist() == [True, True, True]
    row, own = own_targets([1, 1], target[[0, 1]])
    assert has_negative(target[[0, 1]], row, own, 2).tolist() == [False, False]
