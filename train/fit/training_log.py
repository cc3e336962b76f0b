"""From a click log on disk to the sessions that a model learns from and is measured on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import structlog
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from stream.contract.context import MAX_FIELDS, RESERVED
from train.data.clicks import (
    ClickLogError,
    Columns,
    Filters,
    filter_clicks,
    read_clicks,
    split_by_time,
)
from train.data.context import TIME_FIELDS, ContextError, ContextField, learn_fields
from train.data.event_types import EventTypes
from train.data.sessions import Catalogue, Sessions, build_catalogue, build_sessions
from train.data.source import open_log, reading
from train.measure.metrics import NOTHING_LOST, Lost, lost_predictions
from train.network.checkpoint import TrainingData

_NO_NAMES = (pl.Binary, pl.Decimal, pl.Duration, pl.Object)
"""Types whose values have no text by which the stream would find them."""

ALL_EVENTS = EventTypes()

log = structlog.get_logger()


class LogSettings(BaseModel):
    """Which clicks a model learns from, and what of them it is told."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    clicks: str | Path
    """Click log: .parquet, .csv or .tsv (text also .gz), a folder or glob of Parquet files, or the
    URL of one in an object store."""
    columns: Columns = Columns()
    """How the log names its columns."""
    idle_timeout_s: PositiveInt | None = None
    """Cut sessions at longer gaps; kept for serving, which then expires sessions alike. Unset: the
    log's session column says it all."""
    filters: Filters = Filters()
    """Which clicks are worth learning from."""
    validation: str | Path | None = None
    """Click log to validate on; unset: the newest sessions of the log are held back for it."""
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the log's sessions held back, the newest; 0: train on all and validate nothing."""
    event_types: EventTypes = ALL_EVENTS
    """Which types of event advance a session, and which are to be predicted."""
    context: tuple[str, ...] = ()
    """What the model sees of a click besides its item: hour, weekday, gap (the time since the last
    click), or columns of the log."""
    utc_offset_s: int = Field(default=0, ge=-86_400, le=86_400)
    """What to add to UTC for hour and weekday."""

    @field_validator("context")
    @classmethod
    def _can_be_served(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """The rules that the bundle's contract has for its fields."""
        for name in names:
            if name in ("", *RESERVED):
                raise ValueError(f"{name!r} cannot be context, nor can {', '.join(RESERVED)}")
        if len(set(names)) < len(names) or len(names) > MAX_FIELDS:
            raise ValueError(f"expected distinct names, at most {MAX_FIELDS}")
        return names


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """What a run learns from and is measured on."""

    train: Sessions
    validation: Sessions | None
    """Newer sessions over the same catalogue; without them the last epoch counts as the best."""
    catalogue: Catalogue
    idle_timeout_s: int | None
    """The gap that cut the sessions; None where the log named them itself."""
    context: tuple[ContextField, ...] = ()
    """What the columns of the sessions' context mean."""
    event_types: EventTypes = ALL_EVENTS
    """Which types of event are in it, and what they count as targets."""
    lost: Lost = NOTHING_LOST
    """Predictions of the validation that nobody can make: of items new in it."""

    def content_hash(self) -> str:
        """Of all that is learnt from and measured on, clicks in their order."""
        content = hashlib.sha256()
        for sessions in (self.train, self.validation):
            if sessions is not None:
                for array in (
                    sessions.item_index,
                    sessions.timestamp_ms,
                    sessions.start,
                    sessions.context,
                    sessions.target_weight,
                ):
                    content.update(np.ascontiguousarray(array).tobytes())
        return content.hexdigest()[:16]

    def description(self) -> TrainingData:
        """The training part in figures, as the checkpoint keeps it."""
        return TrainingData(
            first_timestamp_ms=int(self.train.timestamp_ms.min()),
            last_timestamp_ms=int(self.train.timestamp_ms.max()),
            clicks=self.train.n_clicks,
            sessions=len(self.train),
            items=len(self.catalogue),
        )


def read_training_log(
    settings: LogSettings,
    *,
    known: Catalogue | None = None,
    fields: Sequence[ContextField] | None = None,
) -> TrainingLog:
    """The sessions to train and to validate on, as the settings say.

    `known`: items that keep their index whether or not the log has them, as the items of a
    checkpoint do that is trained on; new ones come behind. `fields`: context fields that are
    learnt already. Raises ClickLogError or ContextError, for a column that is missing before
    anything is read.
    """
    names = settings.context
    if fields is not None:
        names = tuple(field.name for field in fields)
        if settings.context not in ((), names):
            raise ContextError(
                f"context={','.join(settings.context)}, but the checkpoint has "
                f"{','.join(names) or 'none'}: leave it out, or begin without a warm start"
            )
        for field in fields:
            if field.kind in ("hour", "weekday") and settings.utc_offset_s not in (
                0,
                field.utc_offset_s,
            ):
                raise ContextError(
                    f"utc_offset_s={settings.utc_offset_s}, but the checkpoint's {field.name} has "
                    f"{field.utc_offset_s}: leave it out, or begin without a warm start"
                )
    columns = [name for name in names if name not in TIME_FIELDS]
    wanted = {"context": columns}
    if settings.event_types != ALL_EVENTS:
        wanted["event_types.column"] = [settings.event_types.column]
    for setting, given in wanted.items():
        for name in given:
            if name in settings.columns.sources():
                raise ContextError(
                    f"{setting}={name}: that column is the log's session, item or time"
                )
    for path in (settings.clicks, settings.validation):
        if path is not None:
            _check_columns(path, wanted)
    columns = [name for of_setting in wanted.values() for name in of_setting]
    clicks = read_log(settings.clicks, settings, columns)
    newer: pl.DataFrame | None = None
    if settings.validation is not None:
        newer = read_log(settings.validation, settings, columns)
    elif settings.validation_fraction > 0:
        clicks, newer = split_by_time(clicks, settings.validation_fraction)
    # After the split, so that no item is kept for the clicks it is yet to have.
    filtered = filter_clicks(clicks, settings.filters)
    del clicks  # of a large log each stage is gigabytes
    log.info(
        "log_filtered",
        old_clicks=filtered.old_clicks,
        rare_item_clicks=filtered.rare_item_clicks,
        short_session_clicks=filtered.short_session_clicks,
        repeat_clicks=filtered.repeat_clicks,
    )
    if fields is None:
        fields = learn_fields(filtered.clicks, settings.context, utc_offset_s=settings.utc_offset_s)
    catalogue = build_catalogue(filtered.clicks, known)
    train = build_sessions(filtered.clicks, catalogue, fields)
    if len(train.sessions) == 0:
        raise ClickLogError(f"{settings.clicks} has no session of two clicks to learn from")
    validation, lost = None, NOTHING_LOST
    if newer is not None:
        indexed = build_sessions(newer, catalogue, fields)
        validation, lost = indexed.sessions, lost_predictions(newer, indexed.sessions)
        log.info(
            "validation_read",
            sessions=len(validation),
            dropped_clicks=indexed.dropped_clicks,
            dropped_sessions=indexed.dropped_sessions,
        )
        if not validation.n_targets:
            raise ClickLogError(
                f"{settings.validation or 'the newest sessions of ' + str(settings.clicks)}: "
                f"nothing to predict in {len(newer)} clicks to validate on, "
                f"{indexed.dropped_clicks} of them on items that are not learnt from; "
                "validation_fraction=0 validates nothing"
            )
        if settings.validation is not None:
            last_ms = int(train.sessions.timestamp_ms.max())
            warn_unless_newer(settings.validation, validation, last_ms)
    return TrainingLog(
        train.sessions,
        validation,
        catalogue,
        settings.idle_timeout_s,
        tuple(fields),
        settings.event_types,
        lost,
    )


def read_log(path: str | Path, settings: LogSettings, columns: Sequence[str]) -> pl.DataFrame:
    """The good clicks of one log with these further columns, weighed by their type."""
    return read_clicks(
        path,
        settings.columns,
        idle_timeout_s=settings.idle_timeout_s,
        keep=columns,
        event_types=settings.event_types,
    ).clicks


def warn_unless_newer(path: str | Path, sessions: Sessions, last_timestamp_ms: int) -> None:
    """Say so if most sessions of the log do not begin after that time, the training's last."""
    if np.median(sessions.timestamp_ms[sessions.start[:-1]]) <= last_timestamp_ms:
        log.warning(
            "not_newer_than_the_training",
            clicks=str(path),
            note="what was learnt from is predicted too well",
        )


def check_context_columns(path: str | Path, fields: Sequence[ContextField]) -> None:
    """Raise ContextError unless the log has the columns that the fields are read from."""
    columns = [field.name for field in fields if field.kind == "column"]
    _check_columns(path, {"context": columns})


def _check_columns(path: str | Path, wanted: Mapping[str, Sequence[str]]) -> None:
    """Raise ContextError unless the log has the columns that a setting names."""
    if not any(wanted.values()):
        return
    source = open_log(path)
    with reading(path):
        schema = source.table.collect_schema()
    found = ", ".join(name for name in schema.names() if not name.startswith("\0"))
    for setting, names in wanted.items():
        for name in names:
            if name in source.conflicts:
                raise ContextError(
                    f"{setting}={name}: {source.conflicts[name]} in the files of {path}"
                )
            if name not in schema:
                raise ContextError(
                    f"{setting}={name}: {path} has no such column, only {found}; "
                    f"{', '.join(TIME_FIELDS)} come from the time"
                )
            if schema[name].is_nested() or schema[name] in _NO_NAMES:
                raise ContextError(
                    f"{setting}={name}: {path} has {schema[name]} there; expected text, numbers "
                    "or truth values"
                )
