"""Which records of the output topics are ours: any bytes may be there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.contract.click import BadClick, Click, Reason
from stream.contract.messages import Outcome, dead_letter, recommendation
from stream.contract.records import Headers, Record, Target
from stream.watch.ours import Answer, DeadLetter, read_ours

CLICK = Click(b"s", "tent", 1000, 0)
ASKED = Record(1, 7, 1000, b"s", b"{}", (("source", b"x"), ("offset", b"mine"), ("none", None)))
LIST = recommendation("clicks", ASKED, CLICK, b"[]", "m", Outcome.MODEL, 2000)
LETTER = dead_letter("clicks", ASKED, BadClick(Reason.NOT_JSON, "no"))
SOURCE = (("source", b"clicks-1-7"),)
ANY_HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["source", "topic", "partition", "offset", "reason", "x"]),
        st.none() | st.binary(max_size=20),
    ),
    max_size=8,
).map(tuple)


def record(value: bytes | None, headers: Headers) -> Record:
    return Record(0, 0, 0, b"s", value, headers)


def test_what_workers_write_is_read_with_the_place_of_its_click() -> None:
    answer = read_ours(record(LIST.value, LIST.headers), Target.RECOMMENDATIONS)
    assert isinstance(answer, Answer)
    assert (answer.source, answer.recommendation.click.item_id) == ("clicks-1-7", "tent")
    letter = read_ours(record(LETTER.value, LETTER.headers), Target.DEAD_LETTERS)
    assert letter == DeadLetter("clicks", 1, 7, "not_json")


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (None, SOURCE),
        (b"", SOURCE),
        (b"{", SOURCE),
        (b"{}", SOURCE),
        (b"null", SOURCE),
        ((LIST.value or b"").replace(b"tent", b"\xff"), SOURCE),
        ((LIST.value or b"").replace(b"[]", b"[" * 50_000), SOURCE),
        ((LIST.value or b"")[:-1] + b',"more":' + b"[" * 50_000 + b"]" * 50_000 + b"}", SOURCE),
        (LIST.value, ()),
        (LIST.value, (("source", None),)),
    ],
)
def test_what_is_no_list_of_ours_is_none(value: bytes | None, headers: Headers) -> None:
    assert read_ours(record(value, headers), Target.RECOMMENDATIONS) is None


@pytest.mark.parametrize("name", ["topic", "partition", "offset", "reason"])
def test_a_dead_letter_without_one_of_our_headers_is_none(name: str) -> None:
    ours = {n: v for n, v in LETTER.headers if n != name}
    assert read_ours(record(b"", tuple(ours.items())), Target.DEAD_LETTERS) is None


@given(value=st.none() | st.binary(max_size=50), headers=ANY_HEADERS)
def test_no_bytes_raise(value: bytes | None, headers: Headers) -> None:
    for target in Target:
        read_ours(record(value, headers), target)


@given(cut=st.integers(0, len(LIST.value or b"") - 1), flip=st.integers(0, 255))
def test_no_list_with_a_wrong_byte_raises(cut: int, flip: int) -> None:
    raw = bytearray(LIST.value or b"")
    raw[cut] = flip
    answer = read_ours(record(bytes(raw), SOURCE), Target.RECOMMENDATIONS)
    assert answer is None or isinstance(answer, Answer)
