"""The one order of logs, whatever order the rows come in."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from train.data.order import ITEM_ID, SESSION_ID, in_order, n_names, number_ids

logs = st.lists(
    st.tuples(st.sampled_from(["a", "b", "aa", "é", "z"]), st.integers(0, 6)), max_size=30
)


def log(rows: list[tuple[str, int]]) -> pl.DataFrame:
    text = pl.DataFrame(
        rows, schema={"session_id": pl.String, "timestamp_ms": pl.Int64}, orient="row"
    )
    return number_ids(text.with_row_index("row"))


@given(logs)
def test_sessions_stand_by_first_click_and_name_clicks_by_time_and_row(
    rows: list[tuple[str, int]],
) -> None:
    begins = {name: min(at for other, at in rows if other == name) for name, _ in rows}
    expected = sorted(range(len(rows)), key=lambda r: (begins[rows[r][0]], *rows[r], r))
    ordered = in_order(log(rows))
    assert ordered["row"].to_list() == expected
    assert in_order(ordered) is ordered
    assert n_names(ordered["session_id"]) == len(begins)


def test_names_are_ordered_as_text_and_not_as_they_came() -> None:
    ordered = in_order(log([("z", 1), ("b", 1), ("a", 1)]))
    assert ordered["session_id"].to_list() == ["a", "b", "z"]


def test_logs_share_their_numbers_so_they_can_be_appended() -> None:
    first, second = log([("a", 1)]), log([("b", 2), ("a", 3)])
    assert pl.concat([first, second])["session_id"].to_list() == ["a", "b", "a"]
    assert first.schema["session_id"] == second.schema["session_id"] == SESSION_ID
    assert number_ids(first) is first
    assert number_ids(pl.DataFrame({"item_id": ["x"]})).schema["item_id"] == ITEM_ID
