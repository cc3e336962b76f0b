"""A collected log on disk: numbered Parquet files, and collect.json that says what is in them.

A file is written under another name and renamed, then collect.json likewise: that is the moment
at which its clicks count. What a killed run leaves behind it is removed by the next one.
"""

import re
from datetime import datetime
from pathlib import Path
from typing import Literal

import polars as pl
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from train.data.order import KAFKA_COLUMNS
from train.data.records import (
    TRAIL_CLICKS,
    TRAIL_MS,
    Record,
    Refusal,
    Repeats,
    Scalar,
    WireClick,
    further_fields,
    parse_record,
    texts,
)
from train.data.source import ClickLogError

STATE = "collect.json"
MAX_FIELDS = 200
"""Names of further fields that become columns, the first ones seen."""
WIRE_TYPES = {
    "session_id": pl.String,
    "item_id": pl.String,
    "timestamp_ms": pl.Int64,
    "event_id": pl.String,
    "event_type": pl.String,
}
_PART = re.compile(r"clicks-(\d{6,})\.parquet(\.begun)?")

log = structlog.get_logger()


class CollectError(ClickLogError):
    """One sentence on why clicks cannot be collected."""


class Begin(BaseModel):
    """Where a collection began; a run that goes on with it must begin there too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cluster: str | None
    topic: str
    topic_id: str | None = None
    """Kafka's own; None where the brokers have none, or the folder is of a time without it."""
    since: datetime | None
    from_offsets: dict[int, int]


class CollectState(BaseModel):
    """collect.json: what is in the parts."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    begin: Begin
    next_offset: dict[int, int] = Field(default_factory=dict)
    parts: int = 0
    clicks: int = 0
    repeated: int = 0
    refused: dict[Refusal, int] = Field(default_factory=dict)
    fields: list[str] = Field(default_factory=list)
    """Further fields that became columns, in the order in which they were first seen."""


def load_state(out: Path, begin: Begin) -> CollectState:
    """What the folder holds, by its collect.json; leftovers of a killed run are removed.

    Raises CollectError if it began elsewhere or in a topic that was deleted and made anew since,
    or holds Parquet files that are not ours.
    """
    path = out / STATE
    if path.exists():
        try:
            state = CollectState.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise CollectError(
                f"{path} does not say what was collected: {error.errors()[0]['msg']}"
            ) from error
        for name, found in state.begin.model_dump(exclude={"topic_id"}).items():
            wanted = getattr(begin, name)
            if found != wanted:
                raise CollectError(
                    f"{out} was collected with {name}={found}, not {wanted}: go on with that, or "
                    "name another folder"
                )
        if state.begin.topic_id is None:
            state.begin = begin  # with its topic's id from now on
        elif begin.topic_id not in (None, state.begin.topic_id):
            raise CollectError(
                f"{out} holds clicks of topic {begin.topic} when its id was "
                f"{state.begin.topic_id}, and it is {begin.topic_id}: it was made anew; name "
                "another folder"
            )
    elif any(out.glob("*.parquet")):
        raise CollectError(f"{out} holds Parquet files and no {STATE}; name another folder")
    else:
        state = CollectState(begin=begin)
        _save_state(out, state)  # before the first part, which is known as ours by it
    for file in out.iterdir():
        number = _PART.fullmatch(file.name)
        if number and (file.suffix == ".begun" or int(number[1]) >= state.parts):
            file.unlink()
    return state


def _save_state(out: Path, state: CollectState) -> None:
    begun = out / (STATE + ".begun")
    begun.write_text(state.model_dump_json(indent=1) + "\n")
    begun.rename(out / STATE)


class Parts:
    """Takes records in order of their offsets, one partition after the other."""

    def __init__(self, out: Path, state: CollectState) -> None:
        self.state = state
        self._out = out
        self._clicks: list[WireClick] = []
        self._fields: list[dict[str, Scalar]] = []
        self._source: list[tuple[int, int]] = []
        self._repeats = Repeats()
        self._warned = False

    def __len__(self) -> int:
        """Clicks that are in no file yet."""
        return len(self._clicks)

    def begin_partition(self, partition: int) -> None:
        """Forget the events of another partition, and know again those of this one's files."""
        self._repeats = Repeats()
        if self.state.parts and partition in self.state.next_offset:
            self._repeats.replay(_newest_trails(self._out, partition).iter_rows())

    def take(self, record: Record) -> None:
        """Keep the record's click, or count why there is none."""
        click = parse_record(record)
        if isinstance(click, Refusal):
            self.state.refused[click] = self.state.refused.get(click, 0) + 1
        elif not self._repeats.keep(click.session_id, click.event_id, click.timestamp_ms):
            self.state.repeated += 1
        else:
            fields = further_fields(record.value or b"")
            self._note(fields)
            self._clicks.append(click)
            self._fields.append(fields)
            self._source.append((record.partition, record.offset))

    def reach(self, partition: int, offset: int) -> None:
        """All records of the partition below this offset were taken."""
        self.state.next_offset[partition] = offset

    def commit(self) -> None:
        """Write what was taken since the last time."""
        if self._clicks:
            path = self._out / f"clicks-{self.state.parts:06d}.parquet"
            begun = path.with_name(path.name + ".begun")
            self._table().write_parquet(begun)
            begun.rename(path)
            self.state.parts += 1
            self.state.clicks += len(self._clicks)
            for taken in (self._clicks, self._fields, self._source):
                taken.clear()
            self._repeats.forget()
        _save_state(self._out, self.state)

    def _note(self, fields: dict[str, Scalar]) -> None:
        """Give new names a column while there is room for them."""
        known = self.state.fields
        for name in fields:
            if name in known or name in KAFKA_COLUMNS:
                continue
            if len(known) < MAX_FIELDS:
                known.append(name)
            elif not self._warned:
                self._warned = True
                log.warning("fields_left_out", first=name, most=MAX_FIELDS)

    def _table(self) -> pl.DataFrame:
        """Every part has all columns known by then, so that the last one has them all."""
        wire = {
            name: pl.Series([getattr(click, name) for click in self._clicks], dtype=dtype)
            for name, dtype in WIRE_TYPES.items()
        }
        further = {
            name: texts([fields.get(name) for fields in self._fields]) for name in self.state.fields
        }
        partition, offset = zip(*self._source, strict=True)
        return pl.DataFrame(wire | further).with_columns(
            pl.lit(self.state.begin.topic).alias("kafka_topic"),
            pl.Series("kafka_partition", partition, dtype=pl.Int32),
            pl.Series("kafka_offset", offset, dtype=pl.Int64),
        )


def _newest_trails(out: Path, partition: int) -> pl.DataFrame:
    """The clicks that repeats are looked for among: session_id, event_id, timestamp_ms."""
    clicks = pl.scan_parquet(sorted(out.glob("clicks-*.parquet")), extra_columns="ignore").filter(
        pl.col("kafka_partition") == partition
    )
    newest = pl.col("timestamp_ms") >= pl.col("timestamp_ms").max() - TRAIL_MS
    alive = clicks.filter(newest).select("session_id").unique()
    return (
        clicks.join(alive, on="session_id", how="semi")
        .select("session_id", "event_id", "timestamp_ms", "kafka_offset")
        .sort("kafka_offset")
        .group_by("session_id", maintain_order=True)
        .tail(TRAIL_CLICKS)
        .sort("kafka_offset")
        .select("session_id", "event_id", "timestamp_ms")
        .collect(engine="streaming")
    )
