"""What a restored partition has before the first that librdkafka may read."""

from bench.faults.wire import batch_of, gzip_member, record
from stream.contract.records import Record
from stream.transport.reader import _records
from tests.unit.stream.transport.test_unreadable import at, of_producer

ONE, TWO = record(b"k", b"v"), record(b"k", b"w", number=1)
DEADLY = batch_of(gzip_member(b"") + gzip_member(ONE + TWO), 2, codec=1)


def told(records: list[Record]) -> list[tuple[int, bytes | None]]:
    return [(r.offset, None if r.trouble else r.value) for r in records]


def test_records_come_once_and_in_order_whatever_is_cut_off_or_aborted() -> None:
    pair = batch_of(ONE + TWO, 2)
    answers = [
        # From the second record of a batch on; the deadly one is cut off, and comes again.
        (at(4, pair) + at(6, of_producer(7)) + at(9, DEADLY)[:80], [(7, 6)]),
        (at(9, DEADLY) + at(11, pair)[:-1], []),
        (at(11, pair) + at(13, of_producer(7, 0x30)) + at(15, of_producer(7)), [(7, 6)]),
        (at(17, DEADLY) + at(19, pair), []),
    ]
    deadly = {9: range(9, 11), 17: range(17, 19)}
    found = told([*_records(answers, 0, 5, deadly)])
    assert found[:5] == [(5, b"w"), (9, None), (10, None), (11, b"v"), (12, b"w")]
    assert [offset for offset, _ in found[5:]] == [15, 16, 17, 18], "and nothing behind the last"


def test_a_batch_that_nobody_can_read_is_told_by_its_offsets() -> None:
    damaged = bytearray(at(5, batch_of(ONE + TWO, 2)))
    damaged[70] ^= 0xFF
    found = told([*_records([(bytes(damaged) + at(7, DEADLY), [])], 3, 5, {7: range(7, 9)})])
    assert [offset for offset, _ in found] == [5, 6, 7, 8]
    assert found[2:] == [(7, None), (8, None)]
