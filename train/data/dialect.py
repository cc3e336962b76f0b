"""How a text file is read, found out from its beginning: encoding, separator, quoting, header.

What is given is taken as it is. What is found out wrongly loses no record: those that do not fit
are rejected, and counted.
"""

import codecs
import io
import re
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from train.command import TrainError
from train.data.text import MALFORMED, Dialect, Quoting, Reader, text_chunks

SEPARATORS = (",", "\t", ";", "|")
_SHOWN = {"\t": "tab"}
_PROBED = 100
"""Records by which a separator and a quoting are judged."""
_PROBED_BYTES = 2**20
_SHOWN_LINE = 100
"""Characters of a line in a sentence."""
_MOST_RUNS = 10_000
_SAYS_SEPARATOR = re.compile(rb'(?i)"?sep=([\t -~])"?\r?\n')
"""First line of a file for a spreadsheet."""
_SQL = re.compile(rb"(?m)^(?:COPY .* FROM stdin;|INSERT INTO .*VALUES)")
_UTF16_BYTES = 2**12
_QUOTED = re.compile(rb'"(?<![^\t\n]")([^"]*+(?:""[^"]*+)*+)"(?=\t|\r?\n|\r?\Z)')
"""A field of tab-separated text that is quoted by RFC 4180."""
_NUMBER = re.compile(r"\s*[-+]?\d[\d.,:/TZ\s+-]*")
"""Numbers, dates and times: no column is called so."""


class Form(NamedTuple):
    """What is said about a text file; None is found out."""

    separator: str | None = None
    encoding: str | None = None
    quoting: Quoting | None = None
    header: bool | None = None


FOUND_OUT = Form()


class Described(NamedTuple):
    """One file, and how it is read."""

    dialect: Dialect
    names: list[str]
    """Of its columns; without a header "1", "2" and so on. A name may be there twice."""
    n_skipped: int
    """Lines before its first record."""
    found_out: dict[str, str]
    """What is not as in a plain CSV file in UTF-8 and was not given."""


_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def describe(
    path: Path, head: bytes, is_whole: bool, form: Form, wanted: Collection[str]
) -> Described:
    """How the file that begins with ``head`` is read. ``wanted`` names columns that it should have.
    Raises TrainError for a dump of SQL, and for a file without a header, unless its columns are
    wanted by their numbers.
    """
    encoding = find_encoding(head, is_whole, form)
    dialect = Dialect(",", "rfc", encoding, True, False)
    text = b"".join(text_chunks(io.BytesIO(head), dialect))
    if not is_whole:
        text = text[: text.rfind(b"\n") + 1] or text
    ends_with_cr = b"\n" not in text and b"\r" in text.rstrip(b"\r")
    dialect = dialect._replace(cr_ends_lines=ends_with_cr)
    if ends_with_cr:
        text = text.replace(b"\r", b"\n")
    if sql := _SQL.search(text, 0, _PROBED_BYTES):
        line = sql[0][:_SHOWN_LINE].decode(errors="replace")
        raise TrainError(
            f"{path} is a dump of SQL, with the line {line!r}; "
            "expected a table: let the database write the clicks as CSV with a header, such as "
            "psql's \\copy clicks to 'clicks.csv' csv header"
        )
    separator, is_tab = form.separator, _plain_name(path).endswith((".tsv", ".tab"))
    n_skipped = 0
    if said := _SAYS_SEPARATOR.match(text):
        separator, n_skipped = separator or said[1].decode(errors="replace"), 1
        text = text[said.end() :]
    if not text.strip(b"\r\n"):
        raise TrainError(f"{path} is empty: it has no header")
    if text.startswith(b"#"):
        bare = re.sub(rb"\A(?:#.*\n)+", b"", text)
        separator = separator or _separator(path, bare or text, dialect, wanted)
        n_comments = _n_comments(text, separator.encode())
        n_skipped, text = n_skipped + n_comments, text.split(b"\n", n_comments)[-1]
    separator = separator or _separator(path, text, dialect, wanted)
    dialect = dialect._replace(separator=separator)
    quoting = form.quoting or _quoting(text, is_whole, dialect)
    dialect = dialect._replace(quoting=quoting)
    first = Reader(iter([text]), dialect, 0).first() or []
    names = [name.strip() for name in first]
    has_header = form.header
    if has_header is None:
        has_header = _has_header(names, wanted)
    if not has_header:
        names = [str(n) for n in range(1, len(names) + 1)]
        if wanted and not set(wanted) & set(names):
            line = text.partition(b"\n")[0].decode(errors="replace").rstrip("\r")[:_SHOWN_LINE]
            raise TrainError(
                f"{path} has no header: its first line is {line!r}; name its columns by their "
                f"positions, 1 to {len(names)}, such as --columns session=1,item=3,time=2, or say "
                "--columns header=yes"
            )
    names = [name or f"column_{n}" for n, name in enumerate(names, 1)]
    found_out = {
        name: value
        for name, value, given, plain in (
            (
                "separator",
                _SHOWN.get(separator, separator),
                form.separator,
                "tab" if is_tab else ",",
            ),
            ("encoding", encoding, form.encoding, "utf-8"),
            ("quoting", quoting, form.quoting, "none" if separator == "\t" else "rfc"),
            ("header", "yes" if has_header else "no", form.header, "yes"),
            ("skipped_lines", str(n_skipped), None, "0"),
            ("line_ends", "cr" if ends_with_cr else "lf", None, "lf"),
        )
        if given is None and value != plain
    }
    dialect = dialect._replace(has_header=has_header)
    return Described(dialect, names, n_skipped, found_out)


def find_encoding(head: bytes, is_whole: bool, form: Form) -> str:
    """The encoding of a file that begins so, given or found out."""
    found = _encoding(head, is_whole)
    if form.encoding == "utf-16" and not head.startswith(_UTF16_MARKS):
        return found if found.startswith("utf-16") else "utf-16-le"
    return form.encoding or found


def _n_comments(text: bytes, separator: bytes) -> int:
    """Lines at the beginning that begin with # and have another number of separators than the first
    one that does not: a header, or ids, may begin with # too."""
    lines = text.split(b"\n")
    n_marked = next((n for n, line in enumerate(lines) if not line.startswith(b"#")), len(lines))
    if n_marked == len(lines) or not lines[n_marked].strip():
        return 0
    counts = [line.count(separator) for line in lines[: n_marked + 1]]
    return counts.index(counts[-1])


def _plain_name(path: Path) -> str:
    return path.name.lower().removesuffix(".gz").removesuffix(".zst")


def _encoding(head: bytes, is_whole: bool) -> str:
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8"
    if head.startswith(_UTF16_MARKS):
        return "utf-16"
    begin = head[:_UTF16_BYTES]
    # Half of the bytes of Latin text in UTF-16 are NUL, all at even or all at odd places.
    for encoding, zeros, others in (
        ("utf-16-le", begin[1::2], begin[::2]),
        ("utf-16-be", begin[::2], begin[1::2]),
    ):
        if zeros.count(0) > len(zeros) // 2 and others.count(0) < len(others) // 10 + 1:
            return encoding
    if head.isascii():
        return "utf-8"
    for run in islice(re.finditer(rb"[\x80-\xff]+", head), _MOST_RUNS):
        if not is_whole and run.end() == len(head):
            break
        try:
            run[0].decode()
        except UnicodeDecodeError:
            continue
        return "utf-8"
    return "cp1252"


def _separator(path: Path, text: bytes, dialect: Dialect, wanted: Collection[str]) -> str:
    """Of those in the first record, the one by which most of the next have as many fields; before
    that, the one by which the first record has columns that are wanted."""
    is_tab = _plain_name(path).endswith((".tsv", ".tab"))
    candidates = sorted(SEPARATORS, key=lambda s: (s != "\t") if is_tab else 0)
    text = text[:_PROBED_BYTES]

    def rank(separator: str) -> tuple[int, float, int]:
        quoting: Quoting = "none" if separator == "\t" else "rfc"
        read = dialect._replace(separator=separator, quoting=quoting)
        records = _first_records(Reader(iter([text]), read, 0))
        first = [name.strip().strip('"') for name in records[0]]
        same = sum(len(fields) == len(first) for fields in records) / len(records)
        return len(set(wanted) & set(first)), same if len(first) > 1 else 0, len(first)

    ranks = {separator: rank(separator) for separator in candidates}
    return max(candidates, key=lambda separator: ranks[separator])


def _first_records(reader: Reader) -> list[list[str]]:
    records: list[list[str]] = []
    while len(records) < _PROBED and (fields := reader.first()) is not None:
        records.append(fields)
    return records


def _quoting(text: bytes, is_whole: bool, dialect: Dialect) -> Quoting:
    is_tab = dialect.separator == "\t"
    if b'"' not in text:
        return "none" if is_tab else "rfc"
    if is_tab and not (_is_quoted_throughout(text) or _is_quoted_where_needed(text, is_whole)):
        return "none"
    at = text.find(b'\\"')
    if at < 0:
        return "rfc"
    # Around the first backslash before a quote.
    at = text.rfind(b"\n", 0, at) + 1
    part = text[at : at + _PROBED_BYTES]
    n_columns = len(Reader(iter([text]), dialect, 0).first() or [])
    quotings: tuple[Quoting, ...] = ("rfc", "backslash")
    by_rfc, by_backslash = (
        _n_malformed(part, dialect._replace(quoting=quoting), n_columns) for quoting in quotings
    )
    return "backslash" if by_backslash < by_rfc else "rfc"


def _is_quoted_throughout(text: bytes) -> bool:
    """Whether every line begins or goes on with a quoted field, as where all text is quoted.
    Tab-separated files hold quotes as they are, as in the queries of a search log."""
    lines = [line for line in text[:_PROBED_BYTES].splitlines() if line][:_PROBED]
    quoted = re.compile(rb'(?:^|\t)"[^"\t]*(?:""[^"\t]*)*"(?=\t|$)')
    return all(quoted.search(line) for line in lines)


def _is_quoted_where_needed(text: bytes, is_whole: bool) -> bool:
    """Whether fields of tab-separated text are quoted for what they hold: a doubled quote, a tab or
    a line's end, and no quote stands elsewhere. Both a tab and a line's end may be two lines
    between stray quotes."""
    is_needed, end = False, 0
    for quoted in _QUOTED.finditer(text):
        has_tab, has_end, has_quote = (part in quoted[1] for part in (b"\t", b"\n", b'""'))
        if (has_tab and has_end) or text.find(b'"', end, quoted.start()) >= 0:
            return False
        is_needed, end = is_needed or has_tab or has_end or has_quote, quoted.end()
    # Text that goes on may be cut off in its last quoted field.
    return is_needed and (not is_whole or text.find(b'"', end) < 0)


def _n_malformed(text: bytes, dialect: Dialect, n_columns: int) -> int:
    return sum(
        int(frame[MALFORMED].sum()) for frame in Reader(iter([text]), dialect, n_columns).frames([])
    )


def _has_header(first: Sequence[str], wanted: Collection[str]) -> bool:
    if wanted and all(name.isdecimal() for name in wanted):
        # As pandas names columns that have no names.
        return first[0] in ("0", "1") and list(first) == [
            str(n) for n in range(int(first[0]), int(first[0]) + len(first))
        ]
    if set(wanted) & set(first):
        return True
    return not any(_NUMBER.fullmatch(field) for field in first)
