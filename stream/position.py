"""How far one partition has been applied: written in every transaction, read at every restore.

The position record, not the consumer group's offset, says which clicks are done; a click below it
that is delivered again is skipped. It also carries what must survive a restart for the outcome to
be a function of the log alone: the watermark and the count of bad clicks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from stream.errors import NEWEST_FORMAT, NewerFormatError, StreamError

POSITION_KEY: Final = b"\x00position"
"""Key of the record in the changelog partition; no session_id may begin with NUL."""
BAD_CLICK_WINDOW: Final = 2000
_MASK: Final = (1 << BAD_CLICK_WINDOW) - 1
FORMAT: Final = 1


class BadClickLimitError(Exception):
    """So many bad clicks in a partition that its producers must be wrong, not some clicks."""


class Position(msgspec.Struct, array_like=True):
    """The state of one partition of the clicks topic.

    next_offset: the first offset that has not been applied.
    topic_id: the clicks topic's; a topic that was deleted and created again starts at offset 0.
    watermark_ms: the largest timestamp of a good click below next_offset; -1 before the first.
    bad_run, bad_run_start: bad clicks in a row up to here, and the first one's offset.
    bad_window: one bit per click over the last 2,000, the latest lowest; 1 is a bad click.
    bad_window_start: offset of the first bad click since the window was last clean.
    owner, address: who has applied it: what its transactional ids begin with, and where its pages
    are (host:port).
    excused_until: bad clicks below this offset are not counted: an operator has seen them.
    given_up_until: batches below this offset of the changelog that cannot be read stop no restore:
    an operator has given up what they held.
    """

    next_offset: int
    topic_id: str
    watermark_ms: int = -1
    bad_run: int = 0
    bad_run_start: int = 0
    bad_window: bytes = b""
    bad_window_start: int = 0
    format: int = FORMAT
    owner: str = ""
    address: str = ""
    excused_until: int = 0
    given_up_until: int = 0

    def copy(self) -> "Position":
        """Return an equal position that can be advanced without touching this one."""
        return msgspec.structs.replace(self)

    def excuse(self, until: int) -> "Position":
        """Return this position with a clean record of bad clicks, which begins at an offset."""
        return msgspec.structs.replace(self, bad_run=0, bad_window=b"", excused_until=until)


@dataclass(frozen=True, slots=True)
class BadClickLimit:
    """The limit of one start: bad clicks in a row, or their share of the last 2,000."""

    run: int
    share: float

    def count_good(self, position: Position) -> None:
        position.bad_run = 0
        if position.bad_window:
            position.bad_window = _push(position.bad_window, 0)

    def count_bad(self, position: Position, topic: str, partition: int, offset: int) -> None:
        """Note a bad click; raises BadClickLimitError where it is one too many."""
        if offset < position.excused_until:
            return
        if not position.bad_run:
            position.bad_run_start = offset
        if not position.bad_window:
            position.bad_window_start = offset
        position.bad_run += 1
        position.bad_window = _push(position.bad_window, 1)
        if position.bad_run >= self.run:
            raise BadClickLimitError(
                f"{position.bad_run} bad clicks in a row in {topic}-{partition}, offsets "
                f"{position.bad_run_start} to {offset}: the limit is {self.run} "
                f"(bad_click_run_limit)"
            )
        bad = int.from_bytes(position.bad_window, "little").bit_count()
        if bad > self.share * BAD_CLICK_WINDOW:
            raise BadClickLimitError(
                f"{bad} of the last {BAD_CLICK_WINDOW} clicks in {topic}-{partition} are bad, "
                f"offsets {position.bad_window_start} to {offset}: the limit is a share of "
                f"{self.share} (bad_click_share_limit)"
            )


def _push(window: bytes, bit: int) -> bytes:
    bits = ((int.from_bytes(window, "little") << 1) | bit) & _MASK
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


_decoder = msgspec.msgpack.Decoder(Position)
encode_position: Callable[[Position], bytes] = msgspec.msgpack.Encoder().encode
"""About 50 bytes without recent bad clicks."""


def decode_position(raw: bytes) -> Position:
    """Return the position of a record.

    Raises NewerFormatError on one of a newer format, StreamError on what is none.
    """
    try:
        position = _decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise StreamError(
            f"a position record cannot be read as format {FORMAT}: {error}"
        ) from error
    if (found := position.format) != FORMAT:
        kind = NewerFormatError if FORMAT < found <= NEWEST_FORMAT else StreamError
        raise kind(f"a position record has format {found}, but this version reads {FORMAT}")
    return position
