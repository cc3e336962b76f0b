"""A click log sent to the clicks topic in order of time: ``python -m deploy.demo.replay``.

The producer is like any shop's: confluent-kafka, JSON, the session as key. It sends every column of
the log; which of them the model reads is up to the bundle.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
from confluent_kafka import KafkaError, Message, Producer
from pydantic import PositiveFloat
from pydantic_settings import BaseSettings

from deploy.command import DeployError, options
from train.command import run_command
from train.data.clicks import read_clicks
from train.data.order import with_own_times
from train.data.sessions import TARGET_WEIGHT

FLUSH_TIMEOUT_S = 30


class ReplaySettings(BaseSettings):
    """Send the clicks of a log to Kafka in order of time, with their own timestamps."""

    model_config = options("deploy.demo.replay")

    clicks: Path
    """Click log with the columns session_id, item_id and timestamp_ms; others are sent, too."""
    bootstrap_servers: str = "127.0.0.1:9092"
    """Kafka brokers, host:port, separated by commas."""
    topic: str = "clicks"
    """Topic to write to."""
    clicks_per_second: PositiveFloat = 500.0
    """Pace; the clicks' own times only decide their order."""


def in_order_of_time(clicks: pl.DataFrame) -> pl.DataFrame:
    """The log as it happened; clicks of the same time keep the order of the log."""
    return clicks.sort("timestamp_ms", maintain_order=True)


def replay(clicks: pl.DataFrame, bootstrap_servers: str, topic: str, per_second: float) -> None:
    """Send every click at a steady pace and return when all are acknowledged. Raises DeployError
    when the broker refuses one or does not answer."""
    refused: list[str] = []

    def on_delivery(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            refused.append(error.str())

    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            # As Java clients place keys; librdkafka's own default differs.
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "linger.ms": 0,
            "log_level": 2,
        }
    )
    begin = time.monotonic()
    for n_sent, (key, value) in enumerate(_records(clicks)):
        time.sleep(max(0.0, begin + n_sent / per_second - time.monotonic()))
        producer.produce(topic, key=key, value=value, on_delivery=on_delivery)
        producer.poll(0)
        if refused:
            break
    n_left = producer.flush(FLUSH_TIMEOUT_S)
    if refused or n_left:
        reason = refused[0] if refused else f"no answer within {FLUSH_TIMEOUT_S} s"
        raise DeployError(f"{topic} on {bootstrap_servers} did not accept every click: {reason}")


def _records(clicks: pl.DataFrame) -> Iterator[tuple[str, bytes]]:
    for click in _as_json(clicks).iter_rows(named=True):
        value = {name: value for name, value in click.items() if value is not None}
        yield click["session_id"], json.dumps(value).encode()


def _as_json(clicks: pl.DataFrame) -> pl.DataFrame:
    """The log with its context columns in JSON's types, so that values get the names training gave.

    Numbers and booleans stay what they are; times, decimals and categories become text, as do
    event_id and event_type, which are text in a click. Lists and structs are left out.
    """
    columns = []
    for name, dtype in clicks.drop(TARGET_WEIGHT, strict=False).schema.items():
        column = pl.col(name)
        if dtype.is_nested():
            continue
        if name in ("event_id", "event_type") or not (dtype.is_integer() or dtype.is_float()):
            column = column if dtype == pl.Boolean else column.cast(pl.String)
        elif dtype.is_float():
            # Fractions through text: 1.1 in 32 bits is not 1.1 in 64. JSON has no NaN or infinity.
            finite = pl.when(column.is_finite()).then(column)
            whole = finite.cast(pl.Int64, strict=False)
            either = pl.when(whole == finite).then(whole.cast(pl.Float64))
            column = either.otherwise(finite.cast(pl.String).cast(pl.Float64)).alias(name)
        columns.append(column)
    return clicks.select(columns)


def run_replay(settings: ReplaySettings) -> None:
    """Replay the log. Raises DeployError, or TrainError for a log that cannot be read."""
    clicks = with_own_times(in_order_of_time(read_clicks(settings.clicks).clicks))
    replay(clicks, settings.bootstrap_servers, settings.topic, settings.clicks_per_second)


if __name__ == "__main__":
    sys.exit(run_command(ReplaySettings, run_replay))
