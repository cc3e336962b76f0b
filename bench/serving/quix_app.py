"""A competitor: the same job as our worker's as a Quix Streams application, exactly once.

Written as its guide shows: a dataframe over the clicks, a stateful function, ``to_topic``. State
and values are bytes (the guide's way around JSON), which is the fastest. What the commit interval
should be the guide leaves open: latency asks for a short one and clicks/s for a long one.

It runs in an environment of its own (``build/quix``, from quix.txt); a bad click stops it.
"""

import sys
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat

from bench.serving.one_by_one import OneByOne
from stream.contract.click import BadClick, Record
from stream.settings import KafkaSettings
from train.command import TrainError, run_command


class QuixSettings(KafkaSettings):
    """Answer clicks one at a time, in transactions."""

    bundle: Path
    """Folder of the bundle to serve."""
    state_dir: Path
    """Folder of the state store."""
    commit_interval_s: PositiveFloat
    """Length of a transaction."""
    processing_guarantee: str = "exactly-once"
    """Its default is at-least-once."""


def run(settings: QuixSettings) -> None:
    from quixstreams import Application, State, message_context  # not there where settings are made

    app = Application(
        broker_address=settings.bootstrap_servers,
        consumer_group=settings.app_id,
        auto_offset_reset="earliest",
        processing_guarantee=settings.processing_guarantee,
        commit_interval=settings.commit_interval_s,
        state_dir=settings.state_dir,
        loglevel="WARNING",
    )
    read = {"key_deserializer": "bytes", "value_deserializer": "bytes"}
    clicks = app.topic(settings.clicks_topic, **read)
    write = {"key_serializer": "bytes", "value_serializer": "bytes"}
    recommendations = app.topic(settings.recommendations_topic, **write)
    answer = OneByOne(settings.bundle)

    def recommend(value: bytes, key: bytes, timestamp_ms: int, _: Any, state: State) -> Any:
        at = message_context()
        record = Record(at.partition, at.offset, timestamp_ms, key, value)
        answered = answer(settings.clicks_topic, record, state.get_bytes("session"))
        if isinstance(answered, BadClick):
            raise TrainError(f"bad click: {answered.detail}")
        after, message = answered
        state.set_bytes("session", after)
        return message

    answers = app.dataframe(clicks).apply(recommend, stateful=True, metadata=True)
    answers = answers.set_headers(lambda message, *_: list(message.headers))
    answers.apply(lambda message: message.value).to_topic(recommendations)
    app.run()


if __name__ == "__main__":
    sys.exit(run_command(QuixSettings, run))
