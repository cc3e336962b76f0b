"""A click's numbers: the trainer's, for every click that either side can meet."""

import json
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from stream.contract.click import Click, ClickParser, Record
from stream.contract.context import (
    FIRST_VALUE,
    MAX_FIELDS,
    MAX_VALUE_BYTES,
    MISSING,
    UNKNOWN,
    Context,
    ContextField,
    column_key,
    keep,
)
from stream.contract.decoders import text_of
from train.data.context import GAP_BIN_EDGES_S, context_indices
from train.data.context import texts as texts_of_column

NOW_MS = 1_764_000_000_000
LATEST_MS = NOW_MS + 10 * 365 * 86_400_000


def parsed(parse: ClickParser, **fields: Any) -> Click:
    value = {"session_id": "s", "item_id": "i", "timestamp_ms": NOW_MS} | fields
    click = parse(Record(0, 0, LATEST_MS, b"s", json.dumps(value).encode()))
    assert isinstance(click, Click), click
    return click


# -- columns: what JSON says against what the log's column says -----------------------------------

texts = st.text(max_size=4) | st.sampled_from(["", "view", "a" * 64, "a" * 65, "é" * 32, "é" * 33])
# Whole numbers that a float64 holds, beyond int64 too; halves; tiny and huge ones.
floats = (
    st.integers(-(2**70), 2**70).map(float)
    | st.integers(-100, 100).map(lambda n: n / 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(1e-6, 1e-3)
    | st.sampled_from([-0.0, 1e-5, 9.999e-5, 1e-4, 1.5e-7, 2.0**63, -(2.0**63), 1e16, 5e-324])
)
columns = st.one_of(
    st.tuples(st.just(pl.String), st.lists(st.none() | texts, min_size=1, max_size=12)),
    st.tuples(
        st.just(pl.Int64), st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1)
    ),
    st.tuples(st.just(pl.UInt64), st.lists(st.none() | st.integers(0, 2**64 - 1), min_size=1)),
    st.tuples(st.just(pl.Boolean), st.lists(st.none() | st.booleans(), min_size=1)),
    st.tuples(st.just(pl.Float64), st.lists(st.none() | floats, min_size=1, max_size=12)),
)


@given(columns, st.data())
def test_a_columns_numbers_are_the_trainers(
    column: tuple[type[pl.DataType], list[Any]], data: st.DataObject
) -> None:
    dtype, said = column
    log = pl.DataFrame({"dwell ms": pl.Series(said, dtype=dtype)}).with_columns(
        session_id=pl.lit("s"), timestamp_ms=pl.lit(NOW_MS)
    )
    # Some of the texts are values of the field, in any order.
    names = sorted({text for text in map(named, said) if text})
    values = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    field = ContextField(name="dwell ms", kind="column", values=tuple(values))
    context = Context([field])
    parse = ClickParser(context.columns)
    ours = [
        context.indices(parsed(parse, **{"dwell ms": value}).context, NOW_MS, None)
        for value in said
    ]
    assert ours == context_indices(log, [field]).tolist()


def named(value: object) -> str | None:
    """A value's text where a field could have it."""
    text = text_of(json.dumps(value).encode())
    return text if text is not None and len(text.encode()) <= MAX_VALUE_BYTES else None


@given(floats)
def test_a_float_is_written_as_polars_writes_it(number: float) -> None:
    (text,) = texts_of_column(pl.Series([number]))
    assert text_of(json.dumps(number).encode()) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("null", ""),
        ('""', ""),
        ("", ""),
        ("3", "3"),
        ("3.0", "3"),
        ("-0.0", "0"),
        ("3e2", "300"),
        ("1.50", "1.5"),
        ("0.00001", "0.00001"),
        ("1e-7", "1e-7"),
        ("1e20", "1e+20"),
        ("18446744073709551616", "18446744073709551616"),
        ("true", "true"),
        ('"true"', "true"),
        ('" a "', " a "),
        ('"\\u00fc"', "ü"),
        ("[]", None),
        ("{}", None),
        ('["view"]', None),
        ("1e999", None),
        ("1" * 386, "1" * 386),
        ("1" * 387, None),
        ('"' + "\\u0061" * 65 + '"', None),
    ],
)
def test_what_a_json_value_is_called(value: str, text: str | None) -> None:
    assert text_of(value.encode()) == text


# -- time -------------------------------------------------------------------------------------

FIELDS = [
    ContextField(name="gap", kind="gap", edges_s=GAP_BIN_EDGES_S),
    ContextField(name="fine", kind="gap", edges_s=(0.001, 0.5, 0.501, 7.0)),
    ContextField(name="whole", kind="gap"),
    ContextField(name="hour", kind="hour"),
    ContextField(name="hour_there", kind="hour", utc_offset_s=-10_800),
    ContextField(name="weekday", kind="weekday", utc_offset_s=20_700),
]
gaps_ms = st.sampled_from([0, 1, 500, 501, 999, 1000, 1001, 2000, 7000, 7001]) | st.integers(
    0, 500_000_000
)


@given(st.integers(0, LATEST_MS), st.lists(gaps_ms, max_size=6))
def test_gap_hour_and_weekday_are_the_trainers(first_ms: int, gaps: list[int]) -> None:
    timestamp_ms = np.cumsum([first_ms, *gaps])
    log = pl.DataFrame({"timestamp_ms": timestamp_ms}).with_columns(session_id=pl.lit("s"))
    context = Context(FIELDS)
    ours = [
        context.indices(b"", at_ms, gap_ms)
        for at_ms, gap_ms in zip(timestamp_ms.tolist(), [None, *gaps], strict=True)
    ]
    assert ours == context_indices(log, FIELDS).tolist()


def test_an_earlier_click_is_a_gap_of_0() -> None:
    context = Context([ContextField("gap", "gap", edges_s=(-1.0, 0.5))])
    assert context.indices(b"", 5, -70_000) == context.indices(b"", 5, 0) == [FIRST_VALUE + 1]
    assert context.indices(b"", 5, None) == [MISSING]


# -- what the trail keeps ---------------------------------------------------------------------


def test_every_field_of_the_largest_bundle_fits_into_a_trail_entry() -> None:
    longest = "a" * MAX_VALUE_BYTES
    kept = keep((column_key(f"column {n}"), longest) for n in range(MAX_FIELDS))
    assert len(kept) == 64 * (4 + 1 + 64) < 2**16


def test_another_bundle_reads_what_one_has_kept() -> None:
    old = ClickParser(("device", "event_type", "shape"))
    kept = parsed(old, device="tv", event_type="view", shape=[1], colour="red").context
    new = Context(
        [
            ContextField("event_type", "column", ("cart", "view")),
            ContextField("colour", "column", ("red",)),  # the old bundle did not keep it
            ContextField("shape", "column", ("round",)),
            ContextField("device", "column", ("tv",)),
        ]
    )
    assert new.indices(kept, NOW_MS, None) == [3, MISSING, UNKNOWN, 2]


def test_a_click_that_says_nothing_keeps_nothing() -> None:
    assert parsed(ClickParser(("device", "event_type")), device=None).context == b""
    assert parsed(ClickParser(), device="tv", event_type="view").context == b""
    assert Context([]).indices(b"", NOW_MS, None) == []


# -- one class in the checkpoint and in the manifest --------------------------------------------

WRITTEN = (
    '{"name":"device","kind":"column","values":["tv","phone"],"edges_s":[],"utc_offset_s":0}',
    '{"name":"gap","kind":"gap","values":[],"edges_s":[1.0,2.5],"utc_offset_s":0}',
    '{"name":"hour","kind":"hour","values":[],"edges_s":[],"utc_offset_s":-3600}',
)


@pytest.mark.parametrize("written", WRITTEN)
def test_a_field_is_the_same_in_a_checkpoint_and_in_a_manifest(written: str) -> None:
    checkpoint = TypeAdapter(ContextField)
    field = checkpoint.validate_json(written)
    assert field == msgspec.json.decode(written, type=ContextField)
    assert msgspec.json.encode(field, order="deterministic") == written.encode()
    assert checkpoint.dump_json(field) == written.encode()
    with pytest.raises(ValidationError, match="colour"):
        checkpoint.validate_json(written.replace("values", "colour"))
