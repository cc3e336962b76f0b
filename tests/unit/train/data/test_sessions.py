"""Flat session arrays: order, numbering, what is left out."""

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from train.data.sessions import Catalogue, build_catalogue, build_sessions

Row = tuple[str, str, int]


def log(rows: list[Row]) -> pl.DataFrame:
    return pl.DataFrame(
        rows,
        schema={"session_id": pl.String, "item_id": pl.String, "timestamp_ms": pl.Int64},
        orient="row",
    )


rows_of_logs = st.lists(
    st.tuples(st.sampled_from("stuv"), st.sampled_from("abcde"), st.integers(0, 9)), max_size=30
)


def test_sessions_stand_in_order_of_their_first_click() -> None:
    indexed = build_sessions(
        log([("late", "a", 50), ("late", "b", 60), ("early", "b", 70), ("early", "c", 10)])
    )
    sessions = indexed.sessions
    names = indexed.catalogue.item_ids
    assert sessions.session_id.to_list() == ["early", "late"]
    assert sessions.start.tolist() == [0, 2, 4]
    assert [names[i] for i in sessions.item_index] == ["c", "b", "a", "b"]
    assert sessions.timestamp_ms.tolist() == [10, 70, 50, 60]


def test_clicks_of_one_timestamp_keep_their_order_in_the_log() -> None:
    indexed = build_sessions(log([("s", "b", 5), ("s", "a", 5), ("s", "c", 5)]))
    names = indexed.catalogue.item_ids
    assert [names[i] for i in indexed.sessions.item_index] == ["b", "a", "c"]


def test_catalogue_numbers_the_most_clicked_item_first() -> None:
    catalogue = build_catalogue(log([("s", "b", 0), ("s", "c", 1), ("t", "c", 2), ("t", "a", 3)]))
    assert catalogue.item_ids == ["c", "a", "b"]
    assert catalogue.index == {"c": 0, "a": 1, "b": 2}


def test_clicks_on_unknown_items_are_dropped_and_counted() -> None:
    rows = [("s", "a", 0), ("s", "new", 1), ("s", "b", 2), ("t", "a", 3), ("t", "new", 4)]
    indexed = build_sessions(log(rows), Catalogue(["a", "b"]))
    assert indexed.sessions.session_id.to_list() == ["s"]
    assert indexed.sessions.item_index.tolist() == [0, 1]
    assert (indexed.dropped_clicks, indexed.dropped_sessions) == (2, 1)


def test_an_empty_catalogue_knows_nothing() -> None:
    indexed = build_sessions(log([("s", "a", 0), ("s", "a", 1)]), Catalogue([]))
    assert len(indexed.sessions) == 0
    assert (indexed.dropped_clicks, indexed.dropped_sessions) == (2, 1)


@given(rows_of_logs)
def test_every_click_is_in_its_session_or_counted(rows: list[Row]) -> None:
    indexed = build_sessions(log(rows))
    sessions, names = indexed.sessions, indexed.catalogue.item_ids
    by_session: dict[str, list[tuple[int, str]]] = {}
    for session_id, item_id, timestamp_ms in rows:
        by_session.setdefault(session_id, []).append((timestamp_ms, item_id))
    expected = {
        name: [item for _, item in sorted(clicks, key=lambda click: click[0])]
        for name, clicks in by_session.items()
        if len(clicks) > 1
    }
    found = {
        name: [names[i] for i in items]
        for name, items in zip(sessions.session_id, sessions.items(), strict=True)
    }
    assert found == expected
    assert indexed.dropped_clicks == 0
    assert indexed.dropped_sessions == len(by_session) - len(expected)


@given(rows_of_logs, st.integers(0, 5))
def test_two_slices_hold_the_whole(rows: list[Row], cut: int) -> None:
    sessions = build_sessions(log(rows)).sessions
    left, right = sessions.slice(0, cut), sessions.slice(cut, len(sessions))
    assert [*left.session_id, *right.session_id] == sessions.session_id.to_list()
    assert np.array_equal(np.r_[left.item_index, right.item_index], sessions.item_index)
    assert np.array_equal(np.r_[left.timestamp_ms, right.timestamp_ms], sessions.timestamp_ms)
    assert np.array_equal(np.r_[left.lengths, right.lengths], sessions.lengths)
