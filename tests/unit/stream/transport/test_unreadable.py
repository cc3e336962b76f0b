"""The header of a batch that was fetched by itself."""

import struct

import pytest

from bench.faults.wire import batch_of, record
from stream.transport.unreadable import batch_range

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
