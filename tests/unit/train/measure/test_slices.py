from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from tests.unit.train.building import ranks_from, sessions_of
from train.measure.slices import by_popularity, first_clicks, slicings


def test_bands_of_popularity_end_at_shares_of_the_catalogue() -> None:
    support = np.arange(200, 0, -1)  # item 0 is clicked most
    ranks = replace(ranks_from([1] * 8), target=np.array([0, 1, 2, 19, 20, 99, 100, 199]))
    bands = by_popularity(ranks, support)
    assert [bands.labels[label] for label in bands.label] == [
        *["top 1 %"] * 2, *["next 9 %"] * 2, *["next 40 %"] * 2, *["last 50 %"] * 2
    ]  # fmt: skip


def test_the_first_click_known_stands_on_its_own() -> None:
    ranks = replace(ranks_from([1] * 7), position=np.array([1, 2, 3, 4, 5, 11, 99]))
    known = next(s for s in slicings(ranks, np.ones(9, dtype=np.int64)) if s.name == "clicks known")
    labels = [known.labels[label] for label in known.label]
    assert labels == ["1", "2", "3", "4\N{EN DASH}5", "4\N{EN DASH}5", "11+", "11+"]


@given(
    st.lists(
        st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(0, 8), st.booleans()),
        max_size=20,
    )
)
def test_every_prediction_is_in_one_part_of_each_slicing(
    cases: list[tuple[int, int, int, bool]],
) -> None:
    position, more, target, novel = np.array(cases, dtype=np.int64).reshape(-1, 4).T
    ranks = replace(
        ranks_from([1] * len(cases)),
        position=position,
        length=position + more,
        target=target,
        novel=novel.astype(bool),
    )
    for slicing in slicings(ranks, np.array([5, 5, 5, 0, 0, 1, 2, 3, 4])):
        assert len(slicing.label) == len(cases)
        assert all(0 <= label < len(slicing.labels) for label in slicing.label)


def test_first_clicks_are_answered_by_popularity_with_ties_against_it() -> None:
    sessions = sessions_of([[2, 0], [0, 1], [1, 1], [3, 0]])
    weighed = replace(sessions, target_weight=np.array([1, 1, 1, 1, 2, 1, 0, 1], dtype=np.float32))
    ranks = first_clicks(weighed, support=np.array([7, 4, 4, 9]))
    assert ranks.session.tolist() == [0, 1, 2]
    assert ranks.target.tolist() == [2, 0, 1]
    assert ranks.rank.tolist() == [4, 2, 4]
    assert ranks.weight.tolist() == [1, 1, 2]
    assert not ranks.position.any()
