"""The header of a batch that was fetched by itself."""

import struct

import pytest

from bench.faults.wire import batch_of, gzip_member, record
from stream.transport.unreadable import batch_range, behind, deadly, promised

TWO = batch_of(record(b"k", b"v") + record(b"k", b"v", number=1), 2)
CONTROL = TWO[:21] + struct.pack(">h", 0x30) + TWO[23:]


def at(offset: int, batch: bytes = TWO) -> bytes:
    return struct.pack(">q", offset) + batch[8:]


@pytest.mark.parametrize(
    ("raw", "offset", "expected"),
    [
        (at(7), 7, range(7, 9)),
        (at(7), 8, range(8, 9)),  # its first record was read
        (at(7), 5, range(7, 9)),  # behind a hole
        (at(7, CONTROL), 7, None),
        (b"", 7, None),
        (at(7)[:26], 7, None),
        (at(9, TWO[:16] + b"\1" + TWO[17:]), 7, range(7, 10)),
    ],
)
def test_a_batch_is_known_by_its_header(raw: bytes, offset: int, expected: range | None) -> None:
    assert batch_range(raw, offset) == expected


def of_producer(producer_id: int, attributes: int = 0x10) -> bytes:
    """Two records of a transaction, or its marker."""
    return (
        TWO[:21]
        + struct.pack(">h", attributes)
        + TWO[23:43]
        + struct.pack(">q", producer_id)
        + TWO[51:]
    )


COMPACTED = TWO[:57] + struct.pack(">i", 1) + TWO[61:]
HOLE = range(7, 11)


@pytest.mark.parametrize(
    ("raw", "aborted", "expected"),
    [
        (at(7), [], (range(7, 9), 11)),
        (at(6), [], (range(7, 8), 11)),  # its first record was delivered
        (at(10), [], (range(10, 12), 11)),
        (at(11), [], (None, 11)),
        (at(7, COMPACTED) + at(9), [], (range(9, 11), 11)),
        (at(7, COMPACTED), [], (None, 9)),  # look again from there on
        (at(7, of_producer(5)) + at(9), [(5, 3)], (range(9, 11), 11)),
        (at(7, of_producer(5)), [(6, 3), (5, 8)], (range(7, 9), 11)),
        (at(7, of_producer(5, 0x30)), [], (None, 9)),
        (at(7, of_producer(5, 0x30)) + at(9, of_producer(5)), [(5, 3)], (range(9, 11), 11)),
        (at(7, of_producer(6, 0x30)) + at(9, of_producer(5)), [(5, 3)], (None, 11)),
        (at(7, COMPACTED) + at(9)[:60], [], (None, 9)),
        (b"", [], (None, 11)),
    ],
)
def test_a_hole_should_hold_what_whole_batches_say(
    raw: bytes, aborted: list[tuple[int, int]], expected: tuple[range | None, int]
) -> None:
    assert promised(raw, aborted, HOLE) == expected


def of_gzip(*members: bytes) -> bytes:
    return batch_of(b"".join(map(gzip_member, members)), 1, codec=1)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (at(5) + at(7, of_gzip(b"", record(b"k", b"v"))) + at(8, of_gzip(b"")), [7, 8]),
        (at(7, of_gzip(record(b"k", b"v"), b"")), []),
        (at(7, of_gzip(b"", record(b"k", b"v")))[:70], []),  # the broker has cut it off
        (at(7, batch_of(b"no gzip", 1, codec=1)), []),
        (at(7, batch_of(gzip_member(b""), 1, codec=4)), []),
    ],
)
def test_gzip_with_an_empty_member_first_is_deadly(raw: bytes, expected: list[int]) -> None:
    assert [header.offsets.start for header in deadly(raw)] == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (at(7), 9),
        (at(7) + at(9), 11),
        (at(7) + at(9)[:-1], 9),  # fetched once more, whole
        (at(7) + at(9)[:30], 9),
        (at(7, CONTROL), 9),
        (b"", None),
    ],
)
def test_what_comes_behind_is_told_by_the_last_whole_batch(
    raw: bytes, expected: int | None
) -> None:
    assert behind(raw).offset == expected
