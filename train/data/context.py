"""Context fields learnt from a training log, and the numbers of a log's clicks in them.

`stream/contract/context.py` defines the fields and numbers one click at a time; here it is done for
whole columns. Liu et al. (arXiv 1609.05787) distinguish *input context* (what surrounds a click)
from *transition context* (the gap since the click before).
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Int32

from stream.contract.context import FIRST_VALUE, HOURS, MAX_VALUE_BYTES, UNKNOWN, WEEKDAYS
from stream.contract.context import MISSING as MISSING
from stream.contract.context import ContextField as ContextField
from train.command import TrainError
from train.data.ids import text_column
from train.data.order import OWN_MS

TIME_FIELDS = ("hour", "weekday", "gap")
"""Fields computed from the clicks' times; every other name is a column's."""
MAX_VALUES = 1000
"""A column's most frequent values have numbers of their own; the others are UNKNOWN."""
MIN_SUPPORT = 20
"""Clicks that a value needs for a number of its own."""
GAP_BIN_EDGES_S = (1.0, *(float(2**n) for n in range(1, 18)))
"""Upper edges of the gap's bins: 1 s, 2 s, 4 s, ... 36 h; one more bin lies above them."""


def learn_fields(
    clicks: pl.DataFrame, names: Sequence[str], *, utc_offset_s: int = 0
) -> tuple[ContextField, ...]:
    """The fields of these names: hour, weekday, gap, or a column of the log.

    A column's values are its most frequent ones in this log, the first 1,000 with at least 20
    clicks each. Raises TrainError for a column that the log lacks.
    """
    return tuple(_learn_field(clicks, name, utc_offset_s) for name in names)


def _learn_field(clicks: pl.DataFrame, name: str, utc_offset_s: int) -> ContextField:
    if name == "gap":
        return ContextField(name=name, kind="gap", edges_s=GAP_BIN_EDGES_S)
    if name == "hour":
        return ContextField("hour", "hour", utc_offset_s=utc_offset_s)
    if name == "weekday":
        return ContextField("weekday", "weekday", utc_offset_s=utc_offset_s)
    if name not in clicks.columns:
        raise TrainError(
            f"context {name!r} is not a column of the log, whose columns are "
            f"{', '.join(clicks.columns)}; {', '.join(TIME_FIELDS)} are derived from the time"
        )
    text, n_clicks = pl.col("text"), pl.col("clicks")
    counts = texts(clicks[name]).alias("text").drop_nulls().value_counts(name="clicks")
    frequent = counts.filter(n_clicks >= MIN_SUPPORT, text.str.len_bytes() <= MAX_VALUE_BYTES)
    values = frequent.sort("clicks", "text", descending=[True, False])["text"].head(MAX_VALUES)
    return ContextField(name=name, kind="column", values=tuple(values))


def context_indices(
    clicks: pl.DataFrame, fields: Sequence[ContextField]
) -> Int32[np.ndarray, "T F"]:
    """The number of every click in every field.

    `clicks` has session_id, timestamp_ms and the fields' columns; each session's clicks are
    consecutive and in order of time. A column that the log lacks is MISSING throughout.
    """
    result = np.empty((len(clicks), len(fields)), dtype=np.int32)
    for column, field in enumerate(fields):
        result[:, column] = _field_indices(clicks, field)
    return result


def _field_indices(clicks: pl.DataFrame, field: ContextField) -> Int32[np.ndarray, "T"]:
    if field.kind == "gap":
        gap_s = np.maximum(np.diff(clicks["timestamp_ms"].to_numpy(), prepend=0), 0) / 1000
        index = FIRST_VALUE + np.searchsorted(np.array(field.edges_s), gap_s, side="left")
        first = (clicks["session_id"] != clicks["session_id"].shift()).fill_null(True)
        return np.where(first.to_numpy(), MISSING, index).astype(np.int32)
    if field.kind == "column":
        return _column_indices(clicks, field)
    own_ms = clicks.get_column(OWN_MS, default=clicks["timestamp_ms"]).to_numpy()
    hours = (own_ms // 1000 + field.utc_offset_s) // 3600
    if field.kind == "hour":
        return (FIRST_VALUE + hours % HOURS).astype(np.int32)
    # 1 January 1970 was a Thursday; Monday is 0.
    return (FIRST_VALUE + (hours // HOURS + 3) % WEEKDAYS).astype(np.int32)


def _column_indices(clicks: pl.DataFrame, field: ContextField) -> Int32[np.ndarray, "T"]:
    if field.name not in clicks.columns:
        return np.full(len(clicks), MISSING, dtype=np.int32)
    of_clicks = texts(clicks[field.name]).alias("text")
    numbers = pl.DataFrame(
        {"text": field.values, "number": np.arange(FIRST_VALUE, field.size, dtype=np.int32)},
        schema={"text": pl.String, "number": pl.Int32},
    )
    joined = of_clicks.to_frame().join(numbers, on="text", how="left", maintain_order="left")
    nothing = pl.Series([MISSING], dtype=pl.Int32)
    return joined["number"].fill_null(UNKNOWN).zip_with(of_clicks.is_not_null(), nothing).to_numpy()


def texts(values: pl.Series) -> pl.Series:
    """The values as text: both 3 and 3.0 are "3", true is "true"; null and "" are null."""
    text = values.to_frame().select(text_column(values.name, values.dtype)).to_series()
    return text.set(text == "", None)
