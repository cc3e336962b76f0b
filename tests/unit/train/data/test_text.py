"""The law of text: what an independent reader finds, to the record, the field and the line.

With 10,000 texts, in some minutes: pytest --hypothesis-profile=ten_thousand --timeout=900, and this
file and test_formats.py.
"""

from collections.abc import Iterator
from typing import NamedTuple

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from train.data.text import LINE, MALFORMED, MOST_LINES, RECORD, Dialect, Quoting, Reader, Tally


class Found(NamedTuple):
    """One record, as the independent reader finds it."""

    fields: list[bytes]
    malformed: bool
    line: int
    raw: bytes


def one_record(
    text: bytes, at: int, separator: int, quoting: Quoting
) -> tuple[list[bytes], int] | None:
    """The fields of a record by a walk over its bytes, and the place of its line's end."""
    fields, field, state, n_lines = [], bytearray(), "begin", 1
    while True:
        byte = text[at] if at < len(text) else None
        follows = text[at + 1] if at + 1 < len(text) else None
        ends_line = byte in (None, 10) or (byte == 13 and follows in (None, 10))
        if state == "quoted":
            if byte is None:
                return None
            if byte == 10:
                n_lines += 1
                if n_lines > MOST_LINES:
                    return None
            if byte == 34 and follows == 34:
                field.append(34)
                at += 1
            elif byte == 34:
                state = "closed"
            elif byte == 92 and quoting == "backslash" and follows in (34, 92):
                field.append(follows)
                at += 1
            else:
                field.append(byte)
        elif byte == separator or ends_line:
            fields.append(bytes(field))
            field, state = bytearray(), "begin"
            if ends_line:
                return fields, at + (byte == 13)
        elif state == "begin" and byte == 34 and quoting != "none":
            state = "quoted"
        elif state == "closed":
            return None
        else:
            assert byte is not None
            field.append(byte)
            state = "plain"
        at += 1


def records(text: bytes, separator: int, quoting: Quoting, n_columns: int) -> Iterator[Found]:
    at = 0
    while at < len(text):
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end
        line = text[at:end].removesuffix(b"\r")
        number = text.count(b"\n", 0, at) + 1
        if line:
            found = one_record(text, at, separator, quoting)
            if found is None or (found[1] > end and len(found[0]) != n_columns):
                fields, malformed = line.split(bytes([separator])), True
            else:
                (fields, end), malformed = found, False
            raw = text[at:end].removesuffix(b"\r")
            yield Found(fields, malformed or len(fields) > n_columns, number, raw)
        at = end + 1


def read(
    text: bytes, dialect: Dialect, n_columns: int, piece: int
) -> tuple[list[tuple[list[str | None], bool, int, str]], Tally]:
    """The records, and how many of them are doubtful."""
    chunks = (text[at : at + piece] for at in range(0, len(text), piece))
    with pytest.MonkeyPatch.context() as patch:  # so that records lie across the pieces' ends
        patch.setattr("train.data.text._CHUNK", piece)
        patch.setattr("train.data.text._FEW_BYTES", max(1, piece // 2))
        reader = Reader(chunks, dialect, n_columns)
        frames = list(reader.frames(range(n_columns), with_record=True))
    if not frames:
        return [], reader.tally
    found = pl.concat(frames)
    rows = found.select(*map(str, range(n_columns)), MALFORMED, LINE, RECORD).rows()
    return [(list(fields), bad, line, record) for *fields, bad, line, record in rows], reader.tally


def check(text: bytes, quoting: Quoting, n_columns: int, piece: int) -> None:
    expected = []
    for found in records(text, 44, quoting, n_columns):
        fields = [field.decode(errors="replace") or None for field in found.fields]
        fields = (fields + [None] * n_columns)[:n_columns]
        raw = found.raw.decode(errors="backslashreplace")
        expected.append((fields, found.malformed, found.line, raw))
    dialect = Dialect(",", quoting, "utf-8", True, False)
    found_records, tally = read(text, dialect, n_columns, piece)
    assert found_records == expected
    raws = [record for *_, record in expected]
    assert tally.spanning == sum("\n" in raw for raw in raws)
    quoted = sum(field.startswith('"') for raw in raws for field in raw.split(","))
    assert tally.quoted == (quoted if quoting == "none" else 0)


ATOMS = [
    *(b",", b",", b"\n", b"\n", b"\r\n", b'"', b'"', b'""', b'\\"', b"\\", b"\\\\", b"\r"),
    *(b"\0", b"a", b"b ", "ä".encode(), b"\xe4", b"\xf0\x9f", b'"a"', b'"a,b"', b'"a\nb"'),
    *(b'"a""b"', b'"a\\"b"', b"1,2,3\n", b'1,"2",3\n', b'"1","2","3"\r\n', b'1,"2\n2",3\n'),
]
texts = st.lists(st.sampled_from(ATOMS), max_size=40).map(b"".join)


@given(texts, st.sampled_from(["rfc", "backslash", "none"]), st.integers(1, 4), st.integers(1, 50))
@example(b'"' + b"a\n" * 98 + b'a",2,3\n', "rfc", 3, 1000)
@example(b'"' + b"a\n" * 99 + b'a",2,3\n', "rfc", 3, 1000)
@example(b'"' + b"a\n" * 100 + b'a",2,3\n', "rfc", 3, 1000)
@example(b'1,"un,3\n4,5,6\n7,un",9\n', "rfc", 3, 1000)
@settings(deadline=None, max_examples=max(300, settings().max_examples))
def test_every_record_is_found_as_an_independent_reader_finds_it(
    text: bytes, quoting: Quoting, n_columns: int, piece: int
) -> None:
    check(text, quoting, n_columns, piece)
