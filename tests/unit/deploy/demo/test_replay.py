"""A replayed log says of each click what the log says, in the types of the clicks topic."""

import json
from datetime import date

import numpy as np
import polars as pl

from bench.faults.traffic import LOG_BEGIN_MS
from deploy.demo.replay import _records
from stream.contract.click import Click, ClickParser, Record
from stream.contract.context import Context
from train.data.context import ContextField, context_indices, learn_fields, texts
from train.data.sessions import TARGET_WEIGHT


def log(**columns: pl.Series) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    at_ms = range(LOG_BEGIN_MS, LOG_BEGIN_MS + n)
    wire = {"session_id": ["s"] * n, "item_id": ["i"] * n, "timestamp_ms": at_ms}
    return pl.DataFrame({**wire, **columns})


def sent(clicks: pl.DataFrame) -> list[dict[str, object]]:
    return [json.loads(value) for _, value in _records(clicks)]


def test_context_goes_along_and_what_is_missing_does_not() -> None:
    clicks = log(
        event_type=pl.Series([1, None]),
        device=pl.Series(["tv", ""], dtype=pl.Categorical),
        dwell_ms=pl.Series([15, None]),
        price=pl.Series([1.1, float("nan")], dtype=pl.Float32),
        old=pl.Series([True, None]),
        day=pl.Series([date(2024, 1, 1), None]),
        tags=pl.Series([["a"], []]),
        **{TARGET_WEIGHT: pl.Series([1.0, 0.5])},
    )
    assert sent(clicks) == [
        {
            **{"session_id": "s", "item_id": "i", "timestamp_ms": LOG_BEGIN_MS, "event_type": "1"},
            **{"device": "tv", "dwell_ms": 15, "price": 1.1, "old": True, "day": "2024-01-01"},
        },
        {"session_id": "s", "item_id": "i", "timestamp_ms": LOG_BEGIN_MS + 1, "device": ""},
    ]


def test_the_stream_numbers_a_replayed_log_as_the_trainer_does() -> None:
    random = np.random.default_rng(0)
    n = 3_000
    bits = random.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)
    # Polars writes those below 1e-5 otherwise than their equals of 64 bits.
    price = np.where(np.isfinite(bits) & (np.abs(bits) > 1e-5), bits, 0.1)
    clicks = log(
        event_type=pl.Series([["view", "cart", "", None][i] for i in random.integers(4, size=n)]),
        price=pl.Series(price, dtype=pl.Float32),
        weight=pl.Series(np.round(price.astype(np.float64) % 7, 2)),
        old=pl.Series([[True, False, None][i] for i in random.integers(3, size=n)]),
        rank=pl.Series(random.integers(-3, 3, n), dtype=pl.Int8),
    )
    known = learn_fields(clicks, ["event_type", "weight", "old", "rank"])
    # Each price stands there once: every other one shall be a value.
    prices = texts(clicks["price"]).unique(maintain_order=True).gather_every(2)[:1000].to_list()
    fields = (ContextField(name="price", kind="column", values=tuple(prices)), *known)
    context = Context(fields)
    parse = ClickParser(context.columns)
    numbers = []
    for key, value in _records(clicks):
        click = parse(Record(0, 0, LOG_BEGIN_MS + n, key.encode(), value))
        assert isinstance(click, Click)
        numbers.append(context.indices(click.context, click.timestamp_ms, None))
    np.testing.assert_array_equal(numbers, context_indices(clicks, fields))
    assert len(set(np.array(numbers)[:, 0].tolist())) > 500
