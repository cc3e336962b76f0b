"""Repeated events are found as the stream finds them, and forgetting old ones changes nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.contract.click import TRAIL_CLICKS
from train.data.parts import TRAIL_MS, Repeats


def test_an_event_is_repeated_within_its_session_alone() -> None:
    repeats = Repeats()
    assert repeats.keep("s", "e", 1)
    assert repeats.keep("t", "e", 1)
    assert not repeats.keep("s", "e", 99)
    assert repeats.keep("s", "f", 99)


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_click_without_an_event_id_is_never_repeated(nothing: str | None) -> None:
    repeats = Repeats()
    assert repeats.keep("s", nothing, 1)
    assert repeats.keep("s", nothing, 1)


def test_the_trail_is_fifty_clicks_and_a_day_long() -> None:
    repeats = Repeats()
    assert repeats.keep("s", "first", 1)
    for click in range(TRAIL_CLICKS - 1):
        assert repeats.keep("s", str(click), 1)
    assert not repeats.keep("s", "first", 1)
    assert repeats.keep("s", "one more", 1)
    assert repeats.keep("s", "first", 1)  # 50 clicks ago
    assert repeats.keep("t", None, 1 + TRAIL_MS)
    assert not repeats.keep("s", "one more", 2)
    assert repeats.keep("t", None, 2 + TRAIL_MS)
    assert repeats.keep("s", "one more", 2)


clicks_of_events = st.lists(
    st.tuples(
        st.sampled_from("st"), st.sampled_from([None, "", *"abc"]), st.integers(0, 3 * TRAIL_MS)
    ),
    max_size=40,
)


@given(clicks_of_events, st.integers(0, 40))
def test_forgetting_changes_nothing_that_is_kept(
    clicks: list[tuple[str, str | None, int]], when: int
) -> None:
    whole, forgetful = Repeats(), Repeats()
    for number, click in enumerate(clicks):
        if number == when:
            forgetful.forget()
        assert whole.keep(*click) == forgetful.keep(*click)
