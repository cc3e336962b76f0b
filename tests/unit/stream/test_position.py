"""How far a partition has been applied, and when so many clicks are bad that the worker stops."""

import random
from collections import deque

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.errors import NewerFormatError, StreamError
from stream.position import (
    BAD_CLICK_WINDOW,
    POSITION_KEY,
    BadClickLimit,
    BadClickLimitError,
    Position,
    decode_position,
    encode_position,
)

NO_LIMIT = BadClickLimit(10**9, 1.0)
positions = st.builds(
    Position,
    next_offset=st.integers(0, 2**63 - 1),
    topic_id=st.text(max_size=30),
    watermark_ms=st.integers(-1, 2**63 - 1),
    bad_run=st.integers(0, 2**31),
    bad_run_start=st.integers(0, 2**63 - 1),
    bad_window=st.binary(max_size=BAD_CLICK_WINDOW // 8),
    bad_window_start=st.integers(0, 2**63 - 1),
    owner=st.text(max_size=30),
    address=st.text(max_size=30),
)


def count(limit: BadClickLimit, position: Position, offset: int, *, bad: bool) -> None:
    if bad:
        limit.count_bad(position, "clicks", 3, offset)
    else:
        limit.count_good(position)


@given(positions)
def test_a_position_comes_back_as_it_was(position: Position) -> None:
    assert decode_position(encode_position(position)) == position


def test_a_position_without_bad_clicks_takes_about_50_bytes_and_its_owner() -> None:
    owner, address = "nextclick-0123456789ab", "worker-1.example.org:6066"
    position = Position(123_456_789, "QmFzZTY0LXRvcGljLWlkLQ", 1_764_000_000_000)
    position.owner, position.address = owner, address
    assert len(encode_position(position)) <= 50 + len(owner) + len(address)


def test_a_position_of_a_version_that_noted_no_owner_has_none() -> None:
    raw = encode_position(Position(7, "t", 5, owner="o", address="a"))
    older = msgspec.msgpack.encode(msgspec.msgpack.decode(raw)[:-4])
    assert decode_position(older) == Position(7, "t", 5)


def test_another_format_is_refused_in_one_sentence() -> None:
    for found, kind in ((2, NewerFormatError), (7, NewerFormatError), (8, StreamError)):
        raw = encode_position(msgspec.structs.replace(Position(1, "t"), format=found))
        with pytest.raises(StreamError) as refusal:
            decode_position(raw)
        assert type(refusal.value) is kind
        sentence = f"a position record has format {found}, but this version reads 1"
        assert str(refusal.value) == sentence


@pytest.mark.parametrize("raw", [b"", b"\x93", b"\xc0", b"\x91\xa1x", b'{"next_offset":1}'])
def test_bytes_that_are_no_position_are_refused(raw: bytes) -> None:
    with pytest.raises(StreamError, match=r"^a position record cannot be read as format 1: "):
        decode_position(raw)


def test_no_session_can_take_the_key_of_the_position() -> None:
    assert POSITION_KEY.startswith(b"\x00")


def test_a_copy_can_be_counted_up_alone() -> None:
    position = Position(5, "t")
    NO_LIMIT.count_bad(position.copy(), "clicks", 3, 5)
    assert position == Position(5, "t")


def test_the_limit_of_a_run_names_the_first_and_the_last_offset() -> None:
    limit, position = BadClickLimit(run=3, share=1.0), Position(0, "t")
    for offset, bad in ((10, True), (11, False), (12, True), (15, True)):
        count(limit, position, offset, bad=bad)
    with pytest.raises(BadClickLimitError) as stop:
        limit.count_bad(position, "clicks", 3, 16)
    assert str(stop.value) == (
        "3 bad clicks in a row in clicks-3, offsets 12 to 16: the limit is 3 (bad_click_run_limit)"
    )


def test_the_limit_of_the_share_is_crossed_by_the_1001st_bad_click_of_2000() -> None:
    limit, position = BadClickLimit(run=1000, share=0.5), Position(0, "t")
    # A good click, then two bad ones in three: the 1,001st bad one is number 1,502.
    for offset in range(1501):
        count(limit, position, offset, bad=offset % 3 > 0)
    with pytest.raises(BadClickLimitError) as stop:
        limit.count_bad(position, "clicks", 3, 1501)
    assert str(stop.value) == (
        "1001 of the last 2000 clicks in clicks-3 are bad, offsets 1 to 1501: "
        "the limit is a share of 0.5 (bad_click_share_limit)"
    )


def test_half_of_the_clicks_may_be_bad_for_ever() -> None:
    limit, position = BadClickLimit(run=1000, share=0.5), Position(0, "t")
    for offset in range(10_000):
        count(limit, position, offset, bad=offset % 2 > 0)
    assert len(position.bad_window) <= BAD_CLICK_WINDOW // 8


def test_the_window_holds_the_last_2000_clicks_and_its_start_the_first_bad_one() -> None:
    rng = random.Random(3)
    position, last, start = Position(0, "t"), deque[bool](maxlen=BAD_CLICK_WINDOW), 0
    for offset in range(12_000):
        # Waves of bad clicks and long clean stretches, so that the window is emptied in between.
        bad = rng.random() < (0.3 if offset % 6000 < 2500 else 0.0)
        if bad and not any(last):
            start = offset
        last.append(bad)
        count(NO_LIMIT, position, offset, bad=bad)
        if offset % 50 == 0:
            position = decode_position(encode_position(position))
            window = int.from_bytes(position.bad_window, "little")
            assert [bool(window >> age & 1) for age in range(len(last))] == list(reversed(last))
            assert window >> len(last) == 0
    assert position.bad_window_start == start
    assert position.bad_window == b"", "the last 3,500 clicks were good"
