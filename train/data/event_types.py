"""Which types of event advance a session, and which are to be predicted."""

from collections.abc import Iterable
from typing import Annotated

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from train.data.context import texts
from train.data.sessions import TARGET_WEIGHT
from train.data.source import ClickLogError

MAX_TARGET = 1e6
"""Far above any use, and far below the limits of a sum in float32."""
_KIND = "\0event_type"


class EventTypes(BaseModel):
    """What a click's type decides; by default nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    column: str = Field(default="event_type", min_length=1)
    """Column of the type; numbers are compared as text."""
    inputs: tuple[str, ...] | None = None
    """Types that advance a session; clicks of other types, or without one, are dropped first.
    Unset: all do."""
    targets: dict[str, Annotated[float, Field(ge=0, le=MAX_TARGET)]] | None = None
    """Weight of a type's clicks as targets, such as purchase=3; other types have weight 0: they are
    read but never predicted. Unset: every click has weight 1."""

    @model_validator(mode="after")
    def _check(self) -> "EventTypes":
        if self.inputs is not None and not self.inputs:
            raise ValueError("inputs is empty: no click would be left")
        if self.targets is not None and not any(self.targets.values()):
            raise ValueError("targets has no weight above 0: nothing would be predicted")
        unread = sorted(set(self.targets or ()) - set(self.inputs or self.targets or ()))
        if unread:
            raise ValueError(f"targets has {unread[0]!r}, which is not one of the inputs")
        return self


def weigh_events(clicks: pl.DataFrame, event_types: EventTypes) -> pl.DataFrame:
    """The log without the clicks that do not advance a session, each with its target_weight.

    Without ``targets`` there is no such column, which means 1. Raises ClickLogError if the log has
    no column of types, no click of any input type or none of any target type.
    """
    if event_types.inputs is None and event_types.targets is None:
        return clicks
    if event_types.column not in clicks.columns:
        raise ClickLogError(
            f"the log has no column {event_types.column!r} of event types; its columns are "
            f"{', '.join(clicks.columns)}"
        )
    kinds = texts(clicks[event_types.column]).alias(_KIND)
    found = kinds.unique().drop_nulls().sort().to_list()

    def check(wanted: Iterable[str], role: str) -> None:
        if not set(wanted) & set(found):
            raise ClickLogError(
                f"no click of the log has one of the {role} {', '.join(sorted(wanted))}; "
                f"the values of {event_types.column} are {', '.join(found[:20]) or 'all empty'}"
            )

    clicks, kind = clicks.with_columns(kinds), pl.col(_KIND)
    if event_types.inputs is not None:
        check(event_types.inputs, "input types")
        clicks = clicks.filter(kind.is_in(sorted(event_types.inputs)))
    if event_types.targets is not None:
        check([name for name, weight in event_types.targets.items() if weight], "target types")
        weight = kind.replace_strict(event_types.targets, default=0.0, return_dtype=pl.Float32)
        clicks = clicks.with_columns(weight.alias(TARGET_WEIGHT))
    return clicks.drop(_KIND)
