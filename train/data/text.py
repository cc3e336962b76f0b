"""A file of separated values: from bytes to records to a table, without losing a record.

What is read, exactly. A line ends with LF or CRLF; CR alone is a character. A line without a
character is no record. A field that begins with a quote ends with the next single quote, which a
separator or the line's end must follow; it may hold separators, doubled quotes and line ends. Every
other field is taken as it stands, quotes and all. Where a line's quotes are not closed so, the
record goes on for at most ``MOST_LINES``, and only if it then has as many fields as the header.
Otherwise the line alone is a record, and malformed: a stray quote spoils no other line. A record
with more fields than the header is malformed too; fields that are lacking, and empty ones, are
null. With backslashes as escapes, a quoted field may also hold ``\\"`` and ``\\\\``.

Polars reads those stretches of a file of which ``_regular`` has shown that both ways of reading
agree, at the speed of the disk; the rest is read record by record.
"""

import codecs
import gzip
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

import numpy as np
import polars as pl
from jaxtyping import Int64

from train.command import TrainError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MALFORMED = "\0malformed"
"""Column of a text log: whether the record has too many fields, or a quote that is not closed."""
LINE = "\0line"
"""The first line of the record, from 1; of a Parquet file, its row."""
RECORD = "\0record"
"""The record as it stands in the file; bytes that are no UTF-8 as backslash escapes."""

MOST_LINES = 100
"""Of a record: a stray quote would otherwise make one of the rest of the log."""
HEAD_BYTES = 2**24
"""How much of a file decides how it is read. Larger than most days' logs, read in 0.1 s."""
_CHUNK = 2**23
_FEW_BYTES = 2**16
"""Read record by record before the fast reader is tried again."""

Quoting = Literal["rfc", "backslash", "none"]


class Dialect(NamedTuple):
    """How the bytes of one file are read."""

    separator: str
    quoting: Quoting
    encoding: str
    has_header: bool
    cr_ends_lines: bool
    """As in files of the first Macintoshes, which have no LF at all."""


class Tally(NamedTuple):
    """How many records, or fields, quotes may have been read wrongly in."""

    spanning: int = 0
    """Records on several lines."""
    joined: int = 0
    """Those with as many separators, quoted ones too, as if each line were a record: between two
    stray quotes it is one."""
    quoted: int = 0
    """Fields that begin with a quote and are read with it, where there is no quoting."""

    def __add__(self, other: "Tally") -> "Tally":  # type: ignore[override]  # not of its items
        return Tally(*(one + more for one, more in zip(self, other, strict=True)))


class _Stretch(NamedTuple):
    """Whole records at the beginning of some text; blank lines are none."""

    start: Int64[np.ndarray, "R"]
    end: Int64[np.ndarray, "R"]
    """Without the end of the line."""
    n_fields: Int64[np.ndarray, "R"]
    """An upper bound, and exact where any is above the number of columns."""
    stop: int
    """Where the text goes on."""
    goes_on: bool
    """The record that follows needs more text, not another reader."""
    has_blank_lines: bool
    tally: Tally


class _Slow(NamedTuple):
    """Records read one by one."""

    fields: list[list[bytes]]
    malformed: list[bool]
    start: list[int]
    end: list[int]
    stop: int
    tally: Tally


# -- bytes -------------------------------------------------------------------------------------

_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_UNREAD = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed. Raises TrainError for a compressed file that is cut short, is
    damaged, or is not what its name says."""
    with path.open("rb") as file:
        magic = file.read(6)
    found = next((kind for begin, kind in _MAGIC.items() if magic.startswith(begin)), "")
    for begin, kind in _UNREAD.items():
        if magic.startswith(begin):
            raise TrainError(
                f"{path} is a {kind} file; expected text, gzip or Zstandard: unpack it"
            )
    named, names = path.suffix.lower(), {".gz": "gzip", ".zst": "Zstandard"}
    if magic and named in names and found != named:
        raise TrainError(
            f"{path} is not a {names[named]} file, though its name ends in {named}; rename it"
        )
    opened: dict[str, Any] = {"": open, ".gz": gzip.open, ".zst": zstd.open}
    with cast(IO[bytes], opened[found](path, "rb")) as file:
        try:
            yield file
        except EOFError as error:
            raise TrainError(
                f"{path} is cut short: its compressed data has no end; nothing of it is read, "
                "so copy it again"
            ) from error
        except (gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
            raise TrainError(
                f"{path} is damaged and cannot be read: {error}; nothing of it is read, "
                "so copy it again"
            ) from error


def _escape(error: UnicodeError) -> tuple[str, int]:
    """What an encoding cannot read becomes a byte that UTF-8 cannot read either."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff" * (error.end - error.start), error.end


codecs.register_error("nextclick.escape", _escape)


def text_chunks(file: IO[bytes], dialect: Dialect) -> Iterator[bytes]:
    """The text in UTF-8, without a byte order mark."""
    decoder = None
    if dialect.encoding != "utf-8":
        decoder = codecs.getincrementaldecoder(dialect.encoding)("nextclick.escape")
    is_first = True
    while True:
        chunk = file.read(_CHUNK)
        is_last = not chunk
        if decoder is not None:
            text = decoder.decode(chunk, is_last)
            chunk = (text.removeprefix("\ufeff") if is_first else text).encode(
                "utf-8", "surrogateescape"
            )
        elif is_first:
            chunk = chunk.removeprefix(codecs.BOM_UTF8)
        is_first = False
        if chunk:
            yield chunk.replace(b"\r", b"\n") if dialect.cr_ends_lines else chunk
        if is_last:
            return


# -- records -----------------------------------------------------------------------------------


class Reader:
    """The records of one text, from its first byte on.

    ``n_columns``: of the header. Without one (0), as for the header itself, a record has any number
    of fields.
    """

    def __init__(self, chunks: Iterator[bytes], dialect: Dialect, n_columns: int) -> None:
        self.n_columns = n_columns
        self.tally = Tally()
        """Of the frames that were read."""
        self._dialect = dialect
        self._separator = dialect.separator.encode()
        self._quoted, self._plain = _patterns(self._separator, dialect.quoting)
        self._chunks = chunks
        self._text, self._at, self._at_end = b"", 0, False
        self._line = 1

    def skip(self, n_lines: int) -> None:
        """Go past so many lines, which are short and before the first record."""
        self._fill(_CHUNK)
        for _ in range(n_lines):
            self._at = self._text.index(b"\n", self._at) + 1
        self._line += n_lines

    def first(self) -> list[str] | None:
        """The fields of the next record; None at the end of the text."""
        self._fill(_FEW_BYTES)
        found = self._slow(0)
        if not found.fields:
            return None
        self._line += self._text.count(b"\n", self._at, self._at + found.stop)
        self._at += found.stop
        return [field.decode(errors="replace") for field in found.fields[0]]

    def frames(
        self, columns: Sequence[int], *, with_record: bool = False
    ) -> Iterator[pl.DataFrame]:
        """The other records, in pieces: the columns of these numbers, named by them, then MALFORMED
        and, ``with_record``, LINE and RECORD."""
        size = _CHUNK
        while self._fill(size):
            text = self._text[self._at : self._at + size]
            is_last = self._at_end and self._at + size >= len(self._text)
            stretch = _regular(text, self._dialect, self.n_columns, is_last)
            if stretch.stop == 0 and stretch.goes_on:
                size *= 2
                continue
            frame = self._fast(text, stretch, columns) if stretch.stop else None
            if frame is not None:
                start, end, stop = stretch.start, stretch.end, stretch.stop
                self.tally += stretch.tally
                size = min(_CHUNK, 2 * max(_FEW_BYTES, stop))
            else:
                slow = self._slow(_FEW_BYTES)
                frame = self._slow_frame(slow, columns)
                start, end, stop = (
                    np.array(slow.start, dtype=np.int64),
                    np.array(slow.end, dtype=np.int64),
                    slow.stop,
                )
                self.tally += slow.tally
                size = _FEW_BYTES
            self.tally += Tally(quoted=self._n_quoted(stop))
            if with_record:
                frame = self._with_records(frame, start, end)
                self._line += self._text.count(b"\n", self._at, self._at + stop)
            self._at += stop
            if not frame.is_empty():
                yield frame

    def _n_quoted(self, stop: int) -> int:
        """Fields of the records ahead that begin with a quote, where there is no quoting."""
        end = self._at + stop
        if self._dialect.quoting != "none" or self._text.find(b'"', self._at, end) < 0:
            return 0
        data = np.frombuffer(self._text, dtype=np.uint8)[self._at : end]
        quote = np.flatnonzero(data == 34)
        before = data[quote - 1]
        return int(((quote == 0) | (before == 10) | (before == self._separator[0])).sum())

    def _fill(self, size: int) -> bool:
        """Have so many bytes ahead, or all there are; False at the end of the text."""
        while not self._at_end and len(self._text) - self._at < size:
            chunk = next(self._chunks, b"")
            self._at_end = not chunk
            self._text, self._at = self._text[self._at :] + chunk, 0
        return self._at < len(self._text)

    def _fast(self, text: bytes, stretch: _Stretch, columns: Sequence[int]) -> pl.DataFrame | None:
        """The records of the stretch, read by Polars; None where it finds another number."""
        start, end = stretch.start, stretch.end
        malformed = pl.Series(MALFORMED, stretch.n_fields > self.n_columns)
        text = text[: stretch.stop]
        if not columns or not len(start):
            return pl.DataFrame(height=len(start)).with_columns(
                *(pl.lit(None, pl.String).alias(str(n)) for n in columns), malformed
            )
        has_quotes = self._dialect.quoting != "none" and b'"' in text
        if self._dialect.quoting == "backslash":
            text = text.replace(b'\\"', b'""')
        # Polars has a row for a blank line.
        if stretch.has_blank_lines:
            text = _without_blank_lines(text, start, end)
        header = self._separator.join(b"%d" % n for n in range(self.n_columns)) + b"\n"
        try:
            frame = pl.read_csv(
                header + text,
                columns=[str(number) for number in columns],
                separator=self._dialect.separator,
                quote_char='"' if has_quotes else None,
                infer_schema=False,
                truncate_ragged_lines=True,
                encoding="utf8" if _is_utf8(text) else "utf8-lossy",
            )
        except pl.exceptions.PolarsError:
            return None
        if len(frame) != len(start):
            return None
        if has_quotes:
            frame = frame.with_columns(pl.when(pl.all() != "").then(pl.all()))
        return frame.select(*(str(number) for number in columns), malformed)

    def _slow(self, n_bytes: int) -> _Slow:
        """The next records, of at least so many bytes if there are as many."""
        found, tally = _Slow([], [], [], [], 0, Tally()), Tally()
        at, stop = self._at, self._at
        while True:
            if at >= len(self._text):
                if self._at_end:
                    break
                self._text, self._at_end = self._more()
                continue
            newline = self._text.find(b"\n", at)
            if newline < 0 and not self._at_end:
                self._text, self._at_end = self._more()
                continue
            line_end = newline if newline >= 0 else len(self._text)
            after = min(line_end + 1, len(self._text))
            content_end = line_end - (line_end > at and self._text[line_end - 1] == 13)
            if content_end == at:
                at = stop = after
                continue
            fields, record_end, is_good = self._record(at, line_end)
            if fields is None:
                self._text, self._at_end = self._more()
                continue
            is_good = is_good and not (self.n_columns and len(fields) > self.n_columns)
            if record_end > line_end:
                n_more = self._text.count(b"\n", at, record_end)
                n_separators = self._text.count(self._separator, at, record_end)
                tally += Tally(1, n_separators >= (self.n_columns - 1) * (n_more + 1) > 0)
            found.fields.append(fields)
            found.malformed.append(not is_good)
            found.start.append(at - self._at)
            found.end.append(
                record_end - (record_end > at and self._text[record_end - 1] == 13) - self._at
            )
            at = stop = min(record_end + 1, len(self._text))
            if at - self._at >= n_bytes:
                break
        return found._replace(stop=stop - self._at, tally=tally)

    def _more(self) -> tuple[bytes, bool]:
        chunk = next(self._chunks, b"")
        return self._text + chunk, not chunk

    def _record(self, at: int, line_end: int) -> tuple[list[bytes] | None, int, bool]:
        """The fields of the record that begins here, its end, and whether its quotes are closed.
        None instead of fields where that cannot be told without more text."""
        if self._quoted is None or self._text.find(b'"', at, line_end) < 0:
            return self._line_fields(at, line_end), line_end, True
        if (found := self._fields(at, line_end)) is not None:
            return found[0], line_end, True
        last = line_end
        for _ in range(MOST_LINES - 1):
            if last >= len(self._text):
                break
            newline = self._text.find(b"\n", last + 1)
            last = newline if newline >= 0 else len(self._text)
        if last >= len(self._text) and not self._at_end:
            return None, at, False
        found = self._fields(at, last)
        if found is not None and self.n_columns in (0, len(found[0])):
            return *found, True
        return self._line_fields(at, line_end), line_end, False

    def _line_fields(self, at: int, line_end: int) -> list[bytes]:
        line = self._text[at:line_end]
        return line.removesuffix(b"\r").split(self._separator)

    def _fields(self, at: int, last: int) -> tuple[list[bytes], int] | None:
        """The fields, and where the record ends, at ``last`` at the latest; None where a quoted
        field is not closed as it should be."""
        text, fields = self._text, []
        assert self._quoted is not None
        while True:
            if at < last and text[at] == 34:
                quoted = self._quoted.match(text, at, last)
                if quoted is None:
                    return None
                fields.append(_unescape(quoted[1], self._dialect.quoting))
                at = quoted.end()
                if at < last and text[at] == 13:
                    at += 1
            else:
                plain = self._plain.match(text, at, last)
                assert plain is not None
                at = plain.end()
                field = plain[0]
                if at >= last or text[at] == 10:
                    field = field.removesuffix(b"\r")
                fields.append(field)
            if at >= last or text[at] == 10:
                return fields, at
            at += 1

    def _slow_frame(self, slow: _Slow, columns: Sequence[int]) -> pl.DataFrame:
        table: dict[str, list[str | None]] = {
            str(n): [
                record[n].decode(errors="replace") or None if n < len(record) else None
                for record in slow.fields
            ]
            for n in columns
        }
        malformed = pl.Series(MALFORMED, slow.malformed, dtype=pl.Boolean)
        return pl.DataFrame(
            [pl.Series(n, v, dtype=pl.String) for n, v in table.items()] + [malformed]
        )

    def _with_records(
        self, frame: pl.DataFrame, start: Int64[np.ndarray, "R"], end: Int64[np.ndarray, "R"]
    ) -> pl.DataFrame:
        text = self._text[self._at : self._at + int(end[-1])] if len(end) else b""
        newline = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == 10)
        line = self._line + np.searchsorted(newline, start)
        record = [
            text[a:b].decode(errors="backslashreplace")
            for a, b in zip(start.tolist(), end.tolist(), strict=True)
        ]
        return frame.with_columns(
            pl.Series(LINE, line, dtype=pl.Int64), pl.Series(RECORD, record, dtype=pl.String)
        )


def _patterns(
    separator: bytes, quoting: Quoting
) -> tuple[re.Pattern[bytes] | None, re.Pattern[bytes]]:
    """A quoted field up to its end, and any other."""
    plain = re.compile(rb"[^\n%s]*+" % re.escape(separator))
    if quoting == "none":
        return None, plain
    inside = rb'[^"]*+(?:""[^"]*+)*+'
    if quoting == "backslash":
        inside = rb'[^"\\]*+(?:(?:\\.|"")[^"\\]*+)*+'
    ends = rb'"(?=%s|\r?\n|\r?\Z)' % re.escape(separator)
    return re.compile(rb'"(' + inside + rb")" + ends, re.DOTALL), plain


def _unescape(field: bytes, quoting: Quoting) -> bytes:
    if quoting == "backslash" and b"\\" in field:
        return re.sub(rb'\\(["\\])|""', lambda m: m[1] or b'"', field)
    return field.replace(b'""', b'"')


def _is_utf8(text: bytes) -> bool:
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


# -- what Polars reads as it should ------------------------------------------------------------


def _regular(text: bytes, dialect: Dialect, n_columns: int, is_last: bool) -> _Stretch:
    """The records at the beginning of the text that both ways of reading agree about.

    In these every quote opens a field or closes one, a record on several lines has as many fields
    as the header, and there is neither NUL nor CR alone.
    """
    limit = len(text)  # what ends behind it is not regular
    for odd in (b"\0", b"\\\\" if dialect.quoting == "backslash" else b"\0"):
        if (found := text.find(odd, 0, limit)) >= 0:
            limit = found
    if (n_cr := text.count(b"\r")) and n_cr != text.count(b"\r\n"):
        alone = re.search(rb"\r(?!\n)", text)
        # The next byte may be its LF.
        if alone is not None and (is_last or alone.end() < len(text)):
            limit = min(limit, alone.start())
    data = np.frombuffer(text, dtype=np.uint8)
    newline, separator = np.flatnonzero(data == 10), np.flatnonzero(data == ord(dialect.separator))
    inner = quote = newline[:0]
    is_closed = True
    if dialect.quoting != "none" and b'"' in text:
        quote, irregular = _quotes(text, dialect)
        limit = min(limit, irregular)
        is_closed = len(quote) % 2 == 0
        in_quotes = np.searchsorted(quote, newline) % 2 == 1
        newline, inner = newline[~in_quotes], newline[in_quotes]
    is_whole = is_last and is_closed
    start, end = np.r_[0, newline + 1], np.r_[newline, len(text)]
    n_fields = np.diff(np.searchsorted(separator, end), prepend=0) + 1
    number, is_doubtful = newline[:0], np.empty(0, dtype=bool)
    if len(quote) and (len(inner) or n_fields.max() > n_columns):
        # Only here are separators in quotes looked for, which takes as long as all the rest.
        n_all = n_fields - 1
        separator = separator[np.searchsorted(quote, separator) % 2 == 0]
        n_fields = np.diff(np.searchsorted(separator, end), prepend=0) + 1
    if len(inner):
        number, n_inner = np.unique(np.searchsorted(end, inner), return_counts=True)
        is_doubtful = (n_columns > 1) & (n_all[number] >= (n_columns - 1) * (n_inner + 1))
        wrong = (n_fields[number] != n_columns) & ((number < len(newline)) | is_whole)
        if (wrong := wrong | (n_inner >= MOST_LINES)).any():
            limit = min(limit, int(start[number[wrong][0]]))
    is_all = is_whole and limit == len(text)
    n = len(end) if is_all else int(np.searchsorted(newline, limit))
    stop = min(int(end[n - 1]) + 1, len(text)) if n else 0
    start, end, n_fields = start[:n], end[:n], n_fields[:n]
    end = end - ((end > start) & (data[end - 1] == 13))
    is_record = end > start
    has_blank_lines = not is_record[:-1].all() or (not is_all and not is_record[-1:].all())
    if not is_record.all():
        start, end, n_fields = start[is_record], end[is_record], n_fields[is_record]
    goes_on = limit == len(text) and not is_last
    is_read = number < n
    tally = Tally(int(is_read.sum()), int(is_doubtful[is_read].sum()))
    return _Stretch(start, end, n_fields, stop, goes_on, has_blank_lines, tally)


def _quotes(text: bytes, dialect: Dialect) -> tuple[Int64[np.ndarray, "Q"], int]:
    """The places of quotes, in which an escaped one counts as two, and the first that neither opens
    nor closes a field where it should."""
    irregular = [len(text)]
    if dialect.quoting == "backslash" and b"\\" in text:
        data = np.frombuffer(text, dtype=np.uint8)
        escaped = np.flatnonzero((data[:-1] == 92) & (data[1:] == 34))
        text = text.replace(b'\\"', b'""')  # as long as before
    else:
        escaped = np.empty(0, dtype=np.int64)
    # As if there were lines before and behind.
    data = np.frombuffer(b"\n" + text + b"\n\n", dtype=np.uint8)
    quote = np.flatnonzero(data == 34) - 1
    opening, closing = quote[::2], quote[1::2]
    separator, before, after = ord(dialect.separator), data[opening], data[closing + 2]
    is_open = (before == separator) | (before == 10)
    is_open[1:] |= opening[1:] == closing[: len(opening) - 1] + 1
    is_close = (after == separator) | (after == 10) | ((after == 13) & (data[closing + 3] == 10))
    is_close[: len(opening) - 1] |= opening[1:] == closing[: len(opening) - 1] + 1
    is_outside = np.searchsorted(quote, escaped) % 2 == 0
    for wrong in (opening[~is_open], closing[~is_close], escaped[is_outside]):
        irregular += wrong[:1].tolist()
    return quote, min(irregular)


def _without_blank_lines(
    text: bytes, start: Int64[np.ndarray, "R"], end: Int64[np.ndarray, "R"]
) -> bytes:
    data = np.frombuffer(text, dtype=np.uint8)
    step = np.zeros(len(data) + 1, dtype=np.int8)
    step[start] += 1
    step[end] -= 1
    keep = np.cumsum(step[:-1], dtype=np.int8).astype(bool)
    keep[end[end < len(data)]] = True  # LF, or CR before it
    after = end[end + 1 < len(data)]
    keep[after[(data[after] == 13)] + 1] = True
    return bytes(data[keep])
