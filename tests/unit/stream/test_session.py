"""A session's bytes: what goes in comes out, and another version is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from stream.errors import NewerFormatError, StreamError
from stream.session import (
    TRAIL_CLICKS,
    LastOutcome,
    SessionState,
    TrailClick,
    decode_state,
    encode_state,
    in_todays_format,
    seen_ms,
)

timestamps = st.integers(0, 2**63 - 1)
item_ids = st.text(min_size=1, max_size=256).filter(lambda text: len(text.encode()) <= 256)
numbers = st.floats(width=32)  # infinities and NaN are bytes like any other
trail_clicks = st.builds(
    TrailClick, item_ids, timestamps, st.integers(0, 2**64 - 1), st.binary(max_size=200)
)
# The parts alone: a state made inside a strategy would have its shapes checked there, with
# random numbers that hypothesis does not control.
parts_of_states = st.fixed_dictionaries(
    {
        "bundle_id": st.binary(min_size=8, max_size=8).map(bytes.hex),
        "seen_ms": timestamps,
        "last_click_ms": timestamps,
        "n_clicks": st.integers(0, 2**32 - 1),
        "last_outcome": st.sampled_from(LastOutcome),
        "trail": st.lists(trail_clicks, max_size=TRAIL_CLICKS).map(tuple),
        "model_state": npst.arrays(np.float32, st.integers(0, 8), elements=numbers),
        "top": st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), numbers), max_size=5),
    }
)


def state_of(parts: dict[str, Any]) -> SessionState:
    top = parts["top"]
    return SessionState(
        **{name: part for name, part in parts.items() if name != "top"},
        top_index=np.array([index for index, _ in top], np.int32),
        top_score=np.array([score for _, score in top], np.float32),
    )


@given(parts_of_states)
def test_a_state_comes_back_as_it_was(parts: dict[str, Any]) -> None:
    state = state_of(parts)
    back = decode_state(encode_state(state))
    assert back.bundle_id == state.bundle_id
    assert (back.seen_ms, back.last_click_ms) == (state.seen_ms, state.last_click_ms)
    assert back.n_clicks == state.n_clicks
    assert (back.last_outcome, back.trail) == (state.last_outcome, state.trail)
    for name in ("model_state", "top_index", "top_score"):
        ours, theirs = getattr(back, name), getattr(state, name)
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes()


@given(parts_of_states)
def test_bytes_tell_when_it_was_seen_without_the_rest_and_are_canonical(
    parts: dict[str, Any],
) -> None:
    raw = encode_state(state_of(parts))
    assert seen_ms(raw) == parts["seen_ms"]
    assert encode_state(decode_state(raw)) == raw


def test_a_state_of_100_numbers_and_20_recommendations_has_the_bytes_it_should() -> None:
    trail = (TrailClick("item-1", 1, 0),) * 3
    zeros = np.zeros(20, np.float32)
    state = SessionState(
        "00" * 8,
        1,
        1,
        3,
        LastOutcome.MODEL,
        trail,
        np.zeros(100, np.float32),
        zeros.astype("i4"),
        zeros,
    )
    # 38 of header, 20 and the item id for each click, 4 for each number.
    assert len(encode_state(state)) == 38 + 3 * (20 + 6) + 4 * (100 + 20 + 20)


@pytest.mark.parametrize(
    ("raw", "found"), [(b"", "nothing"), (b"\x04" + bytes(40), "4"), (b"\x00" * 40, "0")]
)
def test_another_format_is_refused_in_one_sentence(raw: bytes, found: str) -> None:
    sentence = f"session state has format {found}, but this version reads 1 to 3"
    for read in (in_todays_format, decode_state):
        with pytest.raises(StreamError) as refusal:
            read(raw)
        assert str(refusal.value) == sentence


@pytest.mark.parametrize(("found", "is_newer"), [(0, False), (4, True), (7, True), (8, False)])
def test_a_number_that_a_newer_version_may_have_is_told_from_garbage(
    found: int, is_newer: bool
) -> None:
    for n_bytes, newer in ((38, is_newer), (37, False)):
        with pytest.raises(StreamError) as refusal:
            in_todays_format(bytes([found]) * n_bytes)
        assert isinstance(refusal.value, NewerFormatError) == newer


def test_bytes_too_short_for_a_header_are_refused() -> None:
    with pytest.raises(StreamError, match="format 1 in 29 bytes, but this version reads 1 to 3"):
        in_todays_format(b"\x01" * 29)
    with pytest.raises(StreamError):
        in_todays_format(b"\x02" * 37)


@given(parts_of_states)
def test_a_state_of_format_1_was_seen_at_its_last_click(parts: dict[str, Any]) -> None:
    raw = encode_state(state_of(parts | {"seen_ms": parts["last_click_ms"]}))
    first = b"\x01" + raw[1:10] + raw[18:]
    assert in_todays_format(first) == raw
