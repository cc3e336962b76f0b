import numpy as np

from tests.unit.train.building import sessions_of
from train.baselines.neighbours import (
    distinct_items,
    index_sessions,
    keep_most_similar,
    merge_newest,
)
from train.data.sessions import Sessions


def random_sessions(n_sessions: int, n_items: int) -> Sessions:
    rng = np.random.default_rng(5)
    return sessions_of(
        [rng.integers(0, n_items, rng.integers(2, 7)).tolist() for _ in range(n_sessions)]
    )


def test_an_items_sessions_stand_newest_first_and_each_once() -> None:
    index = index_sessions(sessions_of([[0, 1, 0], [2, 1], [0, 2]]), n_items=4)
    lists = [
        index.posting[index.posting_start[i] : index.posting_start[i + 1]].tolist()
        for i in range(4)
    ]
    assert lists == [[2, 0], [1, 0], [2, 1], []]
    assert np.diff(index.posting_start).tolist() == [2, 2, 2, 0]


def test_newest_is_the_session_whose_last_click_is_the_latest() -> None:
    sessions = sessions_of([[0, 1], [0, 2]])
    sessions.timestamp_ms[:] = [0, 9000, 1000, 2000]  # the first session goes on after the second
    index = index_sessions(sessions, n_items=3)
    assert index.last_click_ms.tolist() == [2000, 9000]
    assert index.item[index.session_start[1] :].tolist() == [0, 1]


def test_an_items_position_in_a_session_is_that_of_its_last_click() -> None:
    index = index_sessions(sessions_of([[0, 1, 0]]), n_items=2)
    assert dict(zip(index.item.tolist(), index.position.tolist(), strict=True)) == {0: 2, 1: 1}


def test_distinct_items_come_newest_first_with_the_age_of_their_last_click() -> None:
    item, ago = np.empty(4, dtype=np.int64), np.empty(4, dtype=np.int64)
    n = distinct_items(np.array([7, 5, 7, 6]), item, ago)
    assert (item[:n].tolist(), ago[:n].tolist()) == ([6, 7, 5], [0, 1, 2])


def test_merging_finds_the_newest_sessions_with_all_they_share() -> None:
    sessions = random_sessions(n_sessions=200, n_items=30)
    index = index_sessions(sessions, n_items=30)
    known = [set(items.tolist()) for items in sessions.items()]
    item, weight = np.array([3, 17, 8]), np.array([1.0, 0.5, 0.25])
    for m in (1, 10, 40, 200):
        session, match = np.empty(m, dtype=np.int64), np.empty(m, dtype=np.int64)
        similarity = np.empty(m)
        n = merge_newest(item, weight, index, session, similarity, match)
        expected = [s for s in reversed(range(200)) if known[s] & set(item.tolist())][:m]
        assert session[:n].tolist() == expected
        for s, shared, first in zip(session[:n], similarity[:n], match[:n], strict=True):
            matches = [i for i in range(3) if item[i] in known[s]]
            assert shared == weight[matches].sum()
            assert first == matches[0]


def test_of_equally_similar_sessions_the_first_are_kept() -> None:
    kept = np.empty(3, dtype=np.int64)
    assert keep_most_similar(np.array([1.0, 2.0, 1.0, 3.0, 1.0]), 3, kept) == 3
    assert kept.tolist() == [0, 1, 3]
    assert keep_most_similar(np.array([1.0, 2.0]), 3, kept) == 2
    assert kept[:2].tolist() == [0, 1]
