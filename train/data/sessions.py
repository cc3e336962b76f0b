"""Sessions as flat arrays, which trainer, baselines and evaluator read, and the item catalogue."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int32, Int64

from train.data.context import ContextField, context_indices
from train.data.order import ITEM_ID, OWN_MS, codes, in_order, n_names, number_ids

TARGET_WEIGHT = "\0target_weight"  # no log has a column of this name
SHORTEST_SESSION = 2  # a single click has no next click to predict


@dataclass(frozen=True)
class Catalogue:
    """The items a model knows; the row number of an item is its item_index."""

    item_ids: list[str]

    @cached_property
    def index(self) -> dict[str, int]:
        """item_index by item_id."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    def __len__(self) -> int:
        return len(self.item_ids)


@dataclass(frozen=True, slots=True)
class Sessions:
    """Clicks of S sessions, one session after the other.

    Session s is rows ``start[s]:start[s + 1]`` of the click arrays, in order of time.
    Sessions are in order of their first click, so a slice from the end is the newest part.
    """

    item_index: Int64[np.ndarray, "T"]
    timestamp_ms: Int64[np.ndarray, "T"]
    start: Int64[np.ndarray, "S_plus_1"]
    session_id: pl.Series
    """S names, categorical or text: a list of twenty million texts would be 2 GB."""
    context: Int32[np.ndarray, "T F"]
    """The number of every click in every context field (`train/data/context.py`); F may be 0."""
    target_weight: Float32[np.ndarray, "T"]
    """Weight of a click as a target; 0: it is read but never predicted."""

    def __len__(self) -> int:
        return len(self.session_id)

    @property
    def n_clicks(self) -> int:
        return len(self.item_index)

    @property
    def is_target(self) -> Bool[np.ndarray, "T"]:
        """Clicks to predict: not a session's first, and of a weight above 0."""
        is_target = self.target_weight > 0
        is_target[self.start[:-1]] = False
        return is_target

    @property
    def n_targets(self) -> int:
        return int(np.count_nonzero(self.is_target))

    @property
    def lengths(self) -> Int64[np.ndarray, "S"]:
        return np.diff(self.start)

    def items(self) -> list[Int64[np.ndarray, "clicks"]]:
        """Item indices of every session, as views of the flat array."""
        return [self.item_index[a:b] for a, b in pairwise(self.start.tolist())]

    def slice(self, first: int, end: int) -> "Sessions":
        """Sessions ``first`` up to but without ``end``; the click arrays are views."""
        first, end, _ = slice(first, end).indices(len(self))
        end = max(first, end)
        rows = slice(int(self.start[first]), int(self.start[end]))
        return Sessions(
            item_index=self.item_index[rows],
            timestamp_ms=self.timestamp_ms[rows],
            start=self.start[first : end + 1] - self.start[first],
            session_id=self.session_id[first:end],
            context=self.context[rows],
            target_weight=self.target_weight[rows],
        )


class Indexed(NamedTuple):
    """Sessions over a catalogue, and how much of the log they leave out."""

    sessions: Sessions
    catalogue: Catalogue
    dropped_clicks: int
    """Clicks on items that are not in the catalogue."""
    dropped_sessions: int
    """Sessions that are too short without them."""


def build_catalogue(log: pl.DataFrame, known: Catalogue | None = None) -> Catalogue:
    """Every item of the log, the most clicked first, ties by item_id.

    So the rows that negatives drawn by popularity touch most are close together. `known`: items
    that keep their index whether or not the log has them; new ones come after them.
    """
    counts = log["item_id"].value_counts(name="clicks")
    items = counts.sort(["clicks", "item_id"], descending=[True, False])["item_id"].to_list()
    if known is None:
        return Catalogue(items)
    return Catalogue(known.item_ids + [item_id for item_id in items if item_id not in known.index])


def build_sessions(
    log: pl.DataFrame,
    catalogue: Catalogue | None = None,
    context: Sequence[ContextField] = (),
    shortest: int = SHORTEST_SESSION,
) -> Indexed:
    """The log's sessions over ``catalogue`` (default: the log's own items).

    Needs the columns session_id and item_id (categorical or text) and timestamp_ms; clicks of one
    session and one timestamp keep the order they have in the log. Sessions that begin at the same
    time are in order of their names. A gap of ``context`` counts from the last click on a known
    item, as it does in the stream. Where the log has a column target_weight, it is kept. Sessions
    of fewer than ``shortest`` such clicks are left out.
    """
    wanted = {"session_id", "item_id", "timestamp_ms", OWN_MS, TARGET_WEIGHT}
    wanted |= {field.name for field in context if field.kind == "column"}
    clicks = number_ids(log.select(name for name in log.columns if name in wanted))
    n_sessions = n_names(clicks["session_id"])
    if catalogue is None:
        catalogue = build_catalogue(clicks)
    row = _rows(clicks["item_id"], catalogue)
    known = row[codes(clicks["item_id"])] >= 0
    if not known.all():
        clicks = clicks.filter(pl.Series(known))
    del known
    n_known = len(clicks)
    clicks = in_order(clicks)
    sessions = clicks.select(pl.col("session_id").rle().struct.unnest())
    long_enough = sessions["len"] >= shortest
    if not long_enough.all():
        kept = np.repeat(long_enough.to_numpy(), sessions["len"].to_numpy())
        clicks, sessions = clicks.filter(pl.Series(kept)), sessions.filter(long_enough)
    ones = pl.repeat(1.0, len(clicks), dtype=pl.Float32, eager=True)
    weight = clicks.get_column(TARGET_WEIGHT, default=ones)
    return Indexed(
        sessions=Sessions(
            # writable: torch.from_numpy warns about arrays that are not
            item_index=row[codes(clicks["item_id"])],
            timestamp_ms=clicks["timestamp_ms"].to_numpy(writable=True),
            start=np.concatenate([[0], np.cumsum(sessions["len"].to_numpy())]).astype(np.int64),
            session_id=sessions["value"].alias("session_id"),
            context=context_indices(clicks, context),
            target_weight=weight.cast(pl.Float32).to_numpy(writable=True),
        ),
        catalogue=catalogue,
        dropped_clicks=len(log) - n_known,
        dropped_sessions=n_sessions - len(sessions),
    )


def _rows(items: pl.Series, catalogue: Catalogue) -> Int64[np.ndarray, "codes"]:
    """The catalogue's row of every code that `items` may hold, -1 where it has none."""
    listed = codes(pl.Series(catalogue.item_ids, dtype=pl.String).cast(ITEM_ID))
    last = max(codes(items).max(initial=0), listed.max(initial=0))
    row = np.full(int(last) + 1, -1, dtype=np.int64)
    row[listed] = np.arange(len(listed))
    return row
