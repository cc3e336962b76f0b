"""From a click log on disk to the sessions that a model learns from and is measured on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import polars as pl
import structlog
from pydantic import AfterValidator, BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from stream.contract.context import MAX_FIELDS, RESERVED
from train.command import Settings, TrainError
from train.data.clicks import (
    Filters,
    Log,
    filter_clicks,
    read_clicks,
    split_by_time,
)
from train.data.columns import Columns, find_columns
from train.data.context import TIME_FIELDS, ContextField, learn_fields
from train.data.filters import EventTypes, Filtered, TargetWeight
from train.data.health import Health, examine
from train.data.sessions import Catalogue, Sessions, build_catalogue, build_sessions
from train.data.source import open_log, reading
from train.live.replay import newest_clicks
from train.measure.metrics import NOTHING_LOST, Lost, lost_predictions
from train.network.checkpoint import TrainingData
from train.pairs import Pairs, from_pairs, pairs_of, parse_pairs

LONGEST_S = 366 * 86_400
"""Longest idle timeout and lateness: a session that lives longer is a mistake in the setting."""
MOST_REPLAYED = 500_000
"""Clicks, a fifth of them predicted: of a longer log older ones are not counted as live settings
are fitted. Counting takes 40 us a click, five replays of 8."""
_NO_NAMES = (pl.Binary, pl.Decimal, pl.Duration, pl.Object)
"""Types whose values have no text by which the stream would find them."""

ALL_EVENTS = EventTypes()

log = structlog.get_logger()


def columns_of(pairs: Mapping[str, str]) -> Columns:
    """How a log names the columns of a click. Raises ValueError with one sentence on the first
    wrong pair."""
    own = dict(pairs)
    if "public" in own:
        own["preset"] = own.pop("public") or "public"
    return from_pairs(Columns, own)


def _is_a_share(given: float | Path | str) -> float | Path | str:
    if isinstance(given, float) and not 0 <= given < 1:
        raise ValueError("expected a share of at least 0 and below 1, or a click log")
    return given


ColumnNames: TypeAlias = Annotated[Pairs, AfterValidator(lambda pairs: columns_of(pairs) and pairs)]
"""A flag with the pairs that `columns_of` takes."""
Validation: TypeAlias = Annotated[
    float | Path | str, Field(union_mode="left_to_right"), AfterValidator(_is_a_share)
]
"""A flag with a share of a log's sessions, the newest, or with another log."""


def _parse_weights(given: Any) -> Any:
    return {name: 1 if weight == "" else weight for name, weight in parse_pairs(given).items()}


Weights: TypeAlias = Annotated[dict[str, TargetWeight], NoDecode, BeforeValidator(_parse_weights)]


class Reading(Settings):
    """How a click log is read."""

    clicks: str | Path
    """Click log: Parquet, separated text or JSON Lines (both also .gz or .zst), a folder or glob of
    such files, or the URL of Parquet in an object store."""
    columns: ColumnNames = Field(default={})
    """Names of the log's columns: public (SessionId, ItemId, and Time in seconds, as in public
    data sets), or those that differ from session=session_id, item=item_id, time=timestamp_ms,
    event_type=event_type. visitor=NAME in place of session: a log without sessions, cut at idle
    gaps. Positions name columns without a header, paths such as events.aid nested ones. Found out
    where not given: names that are known, time_unit (s, ms, iso and others), and of text separator,
    encoding, quoting (rfc, backslash, none) and header (yes, no)."""
    idle_timeout_s: int | None = Field(default=None, gt=0, le=LONGEST_S)
    """Cut sessions at longer gaps, in training and in the stream. Unset: the session column alone
    separates them."""
    event_types: Weights = Field(default={})
    """Types of event that advance a session, with the weight of a click as target where that is
    not 1: view=0,cart,purchase=3 never predicts a view. Clicks of other types are ignored. Unset:
    all count."""

    @property
    def log_columns(self) -> Columns:
        return columns_of(self.columns)

    @property
    def log_event_types(self) -> EventTypes:
        column, weights = self.log_columns.event_type, self.event_types
        if not weights:
            return EventTypes(column=column)
        targets = None if set(weights.values()) == {1} else weights
        return EventTypes(column=column, inputs=tuple(weights), targets=targets)

    @field_validator("event_types")
    @classmethod
    def _predicts_something(cls, weights: dict[str, float]) -> dict[str, float]:
        if weights and not any(weights.values()):
            raise ValueError("expected a weight above 0: nothing would be predicted")
        return weights


class LogSettings(Reading):
    """Which clicks a model learns from, and what it sees of them."""

    allowed_lateness_s: int = Field(default=600, ge=0, le=LONGEST_S)
    """How late a click may arrive in the stream: sessions live this much longer than the idle
    timeout. Kept for serving."""
    filters: Annotated[Pairs, pairs_of(Filters)] = Field(default={})
    """Which clicks to learn from, for example last_days=7, min_item_support=5,
    min_session_length=3, max_session_length=500 (the default: longer sessions are robots; 0 keeps
    them), drop_repeats=true (one click of each run on the same item)."""
    validation: Validation = 0.1
    """Share of sessions held back for validation, the newest (0: none), or a log to validate on."""
    context: tuple[str, ...] = ()
    """What the model sees of a click besides its item: hour, weekday, gap (the time since the
    previous click), or columns of the log."""
    utc_offset_s: int = Field(default=0, ge=-86_400, le=86_400)
    """Added to UTC for hour and weekday."""

    @property
    def log_filters(self) -> Filters:
        return from_pairs(Filters, self.filters)

    @field_validator("context")
    @classmethod
    def _can_be_served(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """The rules that the bundle's contract has for its fields."""
        for name in {"", *RESERVED} & set(names):
            raise ValueError(f"{name!r} cannot be a context column, nor can {', '.join(RESERVED)}")
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
    """Predictions of the validation that no model can make: of items that are new in it."""
    allowed_lateness_s: int = 600
    """How late a click may arrive in the stream."""
    max_session_length: int = 0
    """Longer sessions were dropped, in the validation too; 0: none."""
    health: Health | None = None
    """Of the log before it was split and filtered; None where it was put together otherwise."""
    newest: pl.DataFrame | None = None
    """The newest clicks of both parts in order of time, of unknown items too, for what is learnt
    from the stream (`train/live/`); None without a validation."""

    def content_hash(self) -> str:
        """Of all that is learnt from and measured on, clicks in their order."""
        content = hashlib.sha256()
        for part in filter(None, (self.train, self.validation)):
            arrays = (part.item_index, part.timestamp_ms, part.start, part.context)
            for array in (*arrays, part.target_weight):
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


def how_read(settings: Reading) -> tuple[EventTypes, int | None]:
    """The event types and the idle timeout with which the log is read, given or found. Raises
    TrainError for a log without a column that is needed."""
    return _how_read(settings, columns_of_log(settings.clicks, settings.log_columns))


def _how_read(settings: Reading, columns: Columns) -> tuple[EventTypes, int | None]:
    event_types = settings.log_event_types.model_copy(update={"column": columns.event_type})
    return event_types, columns.idle_timeout_s(settings.idle_timeout_s)


def read_training_log(
    settings: LogSettings,
    *,
    known: Catalogue | None = None,
    fields: Sequence[ContextField] | None = None,
) -> TrainingLog:
    """The sessions to train and to validate on, as the settings say.

    `known`: items that keep their index whether or not the log has them, as the items of a
    checkpoint do that is trained on; new ones come behind. `fields`: context fields that are
    learnt already. Raises TrainError, for a column that is missing before anything is read.
    """
    names = settings.context
    if fields is not None:
        names = tuple(field.name for field in fields)
        _check_given(settings, fields)
    context, needs_types = [n for n in names if n not in TIME_FIELDS], bool(settings.event_types)
    own = settings.log_columns
    columns = columns_of_log(settings.clicks, own, context, needs_types=needs_types)
    event_types, idle_timeout_s = _how_read(settings, columns)
    newer_log = None if isinstance(settings.validation, float) else settings.validation
    if newer_log is not None:
        own = own.model_copy(update={"event_type": columns.event_type})
        columns_of_log(newer_log, own, context, needs_types=needs_types)

    def read(path: str | Path) -> Log:
        return read_clicks(
            path,
            settings.log_columns,
            idle_timeout_s=settings.idle_timeout_s if path == settings.clicks else idle_timeout_s,
            keep=[*context, *[event_types.column] * needs_types],
            event_types=event_types,
            allowed_lateness_s=settings.allowed_lateness_s,
        )

    first = read(settings.clicks)
    health = health_of(first)
    _tell(settings.clicks, health)
    clicks = first.clicks
    newer = None if newer_log is None else read(newer_log).clicks
    if isinstance(settings.validation, float) and settings.validation > 0:
        clicks, newer = split_by_time(clicks, settings.validation)
    del first
    filters = settings.log_filters
    people = newest = None
    if newer is not None:
        # The other filters stay away: every next click that a person made is asked for.
        longest = Filters(min_session_length=1, max_session_length=filters.max_session_length)
        people = filter_clicks(newer, longest)
        newest = newest_clicks(clicks, people.clicks, MOST_REPLAYED)
    # After the split, so that no item is kept for the clicks it is yet to have.
    filtered = filter_clicks(clicks, filters)
    del clicks  # of a large log each stage is gigabytes
    figures = filtered._asdict()
    log.info("log_filtered", **{name: n for name, n in figures.items() if name != "clicks"})
    if fields is None:
        fields = learn_fields(filtered.clicks, settings.context, utc_offset_s=settings.utc_offset_s)
    catalogue = build_catalogue(filtered.clicks, known)
    train = build_sessions(filtered.clicks, catalogue, fields)
    if len(train.sessions) == 0:
        raise TrainError(_nothing_left(settings, filtered))
    validation, lost = None, NOTHING_LOST
    if people is not None:
        newer = people.clicks
        indexed = build_sessions(newer, catalogue, fields)
        validation, lost = indexed.sessions, lost_predictions(newer, indexed.sessions)
        log.info(
            "validation_read",
            sessions=len(validation),
            dropped_clicks=indexed.dropped_clicks,
            dropped_sessions=indexed.dropped_sessions,
            long_session_clicks=people.long_session_clicks,
        )
        if not validation.n_targets:
            raise TrainError(
                f"{newer_log or 'the newest sessions of ' + str(settings.clicks)}: "
                f"no next click to predict among {len(newer)} validation clicks, "
                f"{indexed.dropped_clicks} of them on items that are not in the training data; "
                "validation=0 skips validation"
            )
        if newer_log is not None:
            warn_unless_newer(newer_log, validation, int(train.sessions.timestamp_ms.max()))
    return TrainingLog(
        train.sessions,
        validation,
        catalogue,
        idle_timeout_s,
        tuple(fields),
        event_types,
        lost,
        settings.allowed_lateness_s,
        filters.max_session_length,
        health,
        newest,
    )


def _tell(path: str | Path, health: Health) -> None:
    """A line about the log, and one for each warning; `look` and the report have the rest."""
    shown = (
        "records",
        "filtered",
        "filtered_types",
        "clicks",
        "sessions",
        "items",
        "lengths",
        "repeats",
    )
    log.info("log_examined", path=str(path), **health.model_dump(include=set(shown)))
    for finding in health.findings:
        log.warning(finding.name, **finding.model_dump(exclude={"name"}))


def _nothing_left(settings: LogSettings, filtered: Filtered) -> str:
    if n_long := filtered.long_session_clicks:
        return (
            f"{settings.clicks} has no session left to learn from: {n_long} clicks are in sessions "
            f"of more than {settings.log_filters.max_session_length}; cut them with "
            "--idle-timeout-s, or keep them with --filters max_session_length=0"
        )
    return f"{settings.clicks} has no session of two clicks to learn from"


def look_at(settings: Reading, *, rejected_path: Path | None = None) -> tuple[Log, Health]:
    """The log without its further columns but for the one of event types, if it has one, and its
    health. Raises TrainError."""
    needs_types = bool(settings.event_types)
    columns = columns_of_log(settings.clicks, settings.log_columns, needs_types=needs_types)
    event_types, _ = _how_read(settings, columns)
    log = read_clicks(
        settings.clicks,
        settings.log_columns,
        idle_timeout_s=settings.idle_timeout_s,
        rejected_path=rejected_path,
        keep=[event_types.column],
        event_types=event_types,
    )
    return log, health_of(log)


def health_of(log: Log) -> Health:
    """The health of a log that was just read."""
    return examine(
        log.clicks,
        filtered=log.n_filtered,
        filtered_types=log.filtered_types,
        rejected=log.rejected,
        visitor=log.visitor,
    )


def _check_given(settings: LogSettings, fields: Sequence[ContextField]) -> None:
    """Raise TrainError where the settings ask for other context than a checkpoint's fields."""
    names, offset = tuple(field.name for field in fields), settings.utc_offset_s
    differs = [
        f"utc_offset_s={offset}, but the checkpoint's {field.name} has {field.utc_offset_s}"
        for field in fields
        if field.kind in ("hour", "weekday") and offset not in (0, field.utc_offset_s)
    ]
    if settings.context not in ((), names):
        given, known = ",".join(settings.context), ",".join(names) or "none"
        differs.insert(0, f"context={given}, but the checkpoint has {known}")
    if differs:
        raise TrainError(f"{differs[0]}: leave it out, or begin without a warm start")


def warn_unless_newer(path: str | Path, sessions: Sessions, last_timestamp_ms: int) -> None:
    """Say so if most sessions of the log do not begin after that time, the training's last."""
    if np.median(sessions.timestamp_ms[sessions.start[:-1]]) <= last_timestamp_ms:
        log.warning(
            "not_newer_than_the_training",
            clicks=str(path),
            note="what was learnt from is predicted too well",
        )


def columns_of_log(
    path: str | Path, columns: Columns, context: Sequence[str] = (), *, needs_types: bool = False
) -> Columns:
    """The columns as the log has them, its rows unread.

    Raises TrainError as `find_columns`, and unless the log has the columns named by ``context``
    and, where they are needed, of event types.
    """
    paths = [name for name in context if "." in name]
    source = open_log(path, columns.form(), (*columns.wanted(), *paths))
    with reading(path):
        schema = source.table.collect_schema()
    columns = find_columns(path, dict.fromkeys([*schema, *source.unusable]), columns)
    wanted = [("context", name) for name in context]
    wanted += [("event_types", columns.event_type)] * needs_types
    found = ", ".join(name for name in schema.names() if not name.startswith("\0"))
    for setting, name in wanted:
        problem = None
        if name in columns.sources():
            problem = "that column is the log's session, item or time"
        elif name in source.unusable:
            problem = f"{path}: that column {source.unusable[name]}"
        elif name not in schema:
            times = ", ".join(TIME_FIELDS)
            problem = f"{path} has no such column, only {found}; {times} are derived from the time"
        elif schema[name].is_nested() or schema[name] in _NO_NAMES:
            problem = f"{path} has {schema[name]} there; expected text, numbers or truth values"
        if problem:
            raise TrainError(f"{setting}={name}: {problem}")
    return columns
