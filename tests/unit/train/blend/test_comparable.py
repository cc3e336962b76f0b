import numpy as np
import pytest
from jaxtyping import Float32

from train.blend.blend import Transform, add_comparable
from train.measure.ranking import best_items

VOTES = np.array([[0.0, 4.0, 0.0, 16.0], [1.0, 1.0, 1.0, 1.0]])


def comparable(transform: Transform) -> Float32[np.ndarray, "b N"]:
    """Twice the comparable votes, on top of 1."""
    total = np.ones(VOTES.shape, dtype=np.float32)
    add_comparable(VOTES, transform, 2.0, total)
    return total


@pytest.mark.parametrize(
    ("transform", "made_of_it"),
    [
        ("standardised", (VOTES[0] - 5) / np.sqrt(43)),  # squares 272 / 4 - 5^2
        ("root", (np.array([0, 2, 0, 4]) - 1.5) / np.sqrt(2.75)),  # 20 / 4 - 1.5^2
        ("softmax", np.exp(VOTES[0]) / np.exp(VOTES[0]).sum()),
        ("share", VOTES[0] / 20),
        ("reciprocal-rank", 1 / (10 + np.array([3, 2, 4, 1]))),  # equal ones by item_index
    ],
)
def test_a_row_becomes_what_its_transform_says_and_is_added_with_its_weight(
    transform: Transform, made_of_it: Float32[np.ndarray, "N"]
) -> None:
    assert comparable(transform)[0] == pytest.approx(1 + 2 * made_of_it, rel=1e-5)


@pytest.mark.parametrize("transform", ["standardised", "root"])
def test_a_row_that_is_all_alike_adds_nothing(transform: Transform) -> None:
    assert comparable(transform)[1].tolist() == [1.0] * 4


def test_large_scores_that_differ_little_are_told_apart() -> None:
    total = np.zeros((1, 3), dtype=np.float32)
    add_comparable(np.array([[1e8, 1e8 + 1, 1e8 + 2]]), "standardised", 1.0, total)
    assert total[0] == pytest.approx([-np.sqrt(1.5), 0, np.sqrt(1.5)], rel=1e-5, abs=1e-6)


def test_scores_far_apart_have_a_softmax() -> None:
    total = np.zeros((1, 2), dtype=np.float32)
    add_comparable(np.array([[1000.0, 0.0]]), "softmax", 1.0, total)
    assert total.tolist() == [[1.0, 0.0]]


def test_the_best_items_are_those_of_a_sort() -> None:
    scores = np.random.default_rng(2).integers(0, 30, (20, 200)).astype(np.float32)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :50]
    assert (best_items(scores, 50) == expected).all()


def test_a_list_longer_than_the_catalogue_ends_with_it_and_has_nothing_unscored() -> None:
    assert best_items(np.array([[1.0, np.nan, 3.0]]), 4).tolist() == [[2, 0, -1, -1]]
