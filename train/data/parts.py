"""A collected log on disk: numbered Parquet files, and collect.json, which says what they hold.

Both are written under another name and renamed, collect.json last: from that moment the file's
clicks count. What a killed run leaves behind is removed by the next one.
"""

import re
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
import polars as pl
import structlog
from pydantic import BaseModel, ConfigDict

from stream.contract.click import TRAIL_CLICKS, BadClick, ClickParser, Reason, Record, event_hash
from stream.contract.decoders import JsonDecoder, WireClick
from train.command import Settings, TrainError, load_json
from train.data.order import KAFKA_COLUMNS
from train.folders import replacing

STATE = "collect.json"
TRAIL_MS = 86_400_000
"""How far behind the watermark an event is remembered."""
MAX_FIELDS = 200
"""Further fields of clicks that become columns, the first ones seen."""
NAMELESS = "an array, an object, or a number or text that cannot be read: unknown to every model"
"""Stands for a value without a text. It is longer than any that a context field learns, so that
training takes it for UNKNOWN, as the stream does."""
_WIRE_TYPES = {name: pl.String() for name in WireClick.__struct_fields__} | {
    "timestamp_ms": pl.Int64()
}
_KAFKA_TYPES = dict(zip(KAFKA_COLUMNS, (pl.String(), pl.Int32(), pl.Int64()), strict=True))
_PART = re.compile(r"clicks-(\d{6,})\.parquet(\.partial)?")

log = structlog.get_logger()


class Begin(Settings):
    """Where a collection began; a run that continues it must begin there too."""

    cluster: str | None
    topic: str
    topic_id: str | None = None
    """Given by Kafka; None from old brokers, or in a folder written before it was kept."""
    since: datetime | None
    from_offsets: dict[int, int]


class CollectState(BaseModel):
    """collect.json: what the files hold."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    begin: Begin
    next_offset: dict[int, int] = {}
    parts: int = 0
    clicks: int = 0
    repeated: int = 0
    refused: dict[Reason, int] = {}
    fields: list[str] = []
    """Further fields that became columns, in the order in which they were first seen."""


def load_state(out: Path, begin: Begin) -> CollectState:
    """What the folder holds, by its collect.json; leftovers of a killed run are removed.

    Raises TrainError if it was collected from another beginning or from a topic that has been
    deleted and created again since, or if it holds Parquet files but no collect.json.
    """
    path = out / STATE
    if path.exists():
        state = _continued(path, begin)
    elif any(out.glob("*.parquet")):
        raise TrainError(f"{out} holds Parquet files but no {STATE}; choose another folder")
    else:
        state = CollectState(begin=begin)
        _save_state(out, state)  # before the first file, which it shows to be ours
    for file in out.iterdir():
        number = _PART.fullmatch(file.name)
        if number and (file.suffix == ".partial" or int(number[1]) >= state.parts):
            file.unlink()
    return state


def _continued(path: Path, begin: Begin) -> CollectState:
    state = load_json(CollectState, path, " does not describe a collected log")
    for name, found in state.begin.model_dump(exclude={"topic_id"}).items():
        if found != getattr(begin, name):
            raise TrainError(
                f"{path.parent} was collected with {name}={found}, not {getattr(begin, name)}: "
                "continue with that, or choose another folder"
            )
    if state.begin.topic_id is None:
        state.begin = begin  # has the topic's id from now on
    elif begin.topic_id not in (None, state.begin.topic_id):
        raise TrainError(
            f"{path.parent} holds clicks of topic {begin.topic} with id {state.begin.topic_id}, "
            f"but its id is {begin.topic_id} now: it was created again; choose another folder"
        )
    return state


def _save_state(out: Path, state: CollectState) -> None:
    with replacing(out / STATE) as partial:
        partial.write_text(state.model_dump_json(indent=1) + "\n")


class Repeats:
    """Finds the events of one partition whose event_id is in their session's trail.

    The trail is the session's last 50 clicks that are not repeats themselves and not a day older
    than the watermark, the partition's latest timestamp. The stream forgets a session at its idle
    timeout instead, which a collector does not know. All of this follows from the clicks that were
    kept, so it can be restored from them.
    """

    def __init__(self) -> None:
        self._trails: dict[str, deque[tuple[int, int]]] = {}
        self._watermark_ms = 0

    def keep(self, session_id: str, event_id: str | None, timestamp_ms: int) -> bool:
        """Add a click to its session's trail unless it is a repeat; returns whether it was not."""
        if (trail := self._trails.get(session_id)) is None:
            trail = self._trails[session_id] = deque(maxlen=TRAIL_CLICKS)
        event = event_hash(event_id)
        oldest_ms = self._watermark_ms - TRAIL_MS
        if event and any(known == event and at >= oldest_ms for known, at in trail):
            return False
        trail.append((event, timestamp_ms))
        self._watermark_ms = max(self._watermark_ms, timestamp_ms)
        return True

    def forget(self) -> None:
        """Free the memory of sessions in which no repeat can be found any more."""
        oldest_ms = self._watermark_ms - TRAIL_MS
        self._trails = {
            session: trail
            for session, trail in self._trails.items()
            if any(at >= oldest_ms for _, at in trail)
        }


class Parts:
    """Takes records in order of their offsets, one partition after the other."""

    def __init__(self, out: Path, state: CollectState) -> None:
        self.state = state
        self._out = out
        self._rows: list[dict[str, str | int | None]] = []
        self._decode = JsonDecoder()
        self._parse = ClickParser(decode=self._decode)
        self._repeats = Repeats()
        self._warned = False

    def __len__(self) -> int:
        """Clicks that are not in a file yet."""
        return len(self._rows)

    def begin_partition(self, partition: int) -> None:
        """Forget the events of another partition, and restore this one's from its files."""
        self._repeats = Repeats()
        if self.state.parts and partition in self.state.next_offset:
            for click in _newest_trails(self._out, partition).iter_rows():
                self._repeats.keep(*click)

    def take(self, record: Record) -> None:
        """Keep the record's click, or count why there is none."""
        click = self._parse.wire_click(record)
        if isinstance(click, BadClick):
            self.state.refused[click.reason] = self.state.refused.get(click.reason, 0) + 1
        elif not self._repeats.keep(click.session_id, click.event_id, click.timestamp_ms):
            self.state.repeated += 1
        else:
            assert record.value is not None
            further = self._columns(self._decode.further_texts(record.value))
            source = (self.state.begin.topic, record.partition, record.offset)
            kafka = dict(zip(KAFKA_COLUMNS, source, strict=True))
            self._rows.append(msgspec.structs.asdict(click) | further | kafka)

    def _columns(self, texts: dict[str, str | None]) -> dict[str, str]:
        """The fields that are columns; new names become columns while there is room for them."""
        known = self.state.fields
        for name in texts:
            if name in known or name in KAFKA_COLUMNS or name.startswith("\0"):
                continue
            if len(known) < MAX_FIELDS:
                known.append(name)
            elif not self._warned:
                self._warned = True
                log.warning("fields_left_out", first=name, most=MAX_FIELDS)
        return {n: NAMELESS if text is None else text for n, text in texts.items() if n in known}

    def reach(self, partition: int, offset: int) -> None:
        """All records of the partition below this offset were taken."""
        self.state.next_offset[partition] = offset

    def commit(self) -> None:
        """Write what was taken since the last time. Every file has all columns known by then, so
        that the last one has them all."""
        if self._rows:
            path = self._out / f"clicks-{self.state.parts:06d}.parquet"
            schema = _WIRE_TYPES | dict.fromkeys(self.state.fields, pl.String()) | _KAFKA_TYPES
            with replacing(path) as partial:
                pl.DataFrame(self._rows, schema).write_parquet(partial)
            self.state.parts += 1
            self.state.clicks += len(self._rows)
            self._rows.clear()
            self._repeats.forget()
        _save_state(self._out, self.state)


def _newest_trails(out: Path, partition: int) -> pl.DataFrame:
    """The clicks among which repeats are looked for: session_id, event_id, timestamp_ms."""
    clicks = pl.scan_parquet(sorted(out.glob("clicks-*.parquet")), extra_columns="ignore")
    clicks = clicks.filter(pl.col("kafka_partition") == partition)
    newest = pl.col("timestamp_ms") >= pl.col("timestamp_ms").max() - TRAIL_MS
    alive = clicks.filter(newest).select("session_id").unique()
    return (
        clicks.join(alive, on="session_id", how="semi")
        .sort("kafka_offset")
        .group_by("session_id", maintain_order=True)
        .tail(TRAIL_CLICKS)
        .sort("kafka_offset")
        .select("session_id", "event_id", "timestamp_ms")
        .collect(engine="streaming")
    )
