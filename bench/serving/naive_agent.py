"""A competitor: the same job as our worker's, written as Faust's guide shows.

One click at a time, ``async for`` over the stream, ``table[key] = value``, ``topic.send`` for each
list. It shares its work on a click with the other competitor (one_by_one.py), and has uvloop and
the producer settings with which Faust is fastest, so that the ratio is about the path alone. It
promises less: a fault loses clicks or applies them twice.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import faust
import uvloop
from faust.transport.producer import ProducerBuffer
from pydantic import PositiveFloat, PositiveInt
from yarl import URL

from bench.serving.one_by_one import OneByOne
from stream.contract.click import BadClick, Record
from stream.contract.messages import Message, dead_letter
from stream.logs import configure_logging
from stream.settings import KafkaSettings
from train.command import run_command


class NaiveSettings(KafkaSettings):
    """Answer clicks one at a time, as Faust's guide shows."""

    bundle: Path
    """Folder of the bundle to serve."""
    partitions: PositiveInt
    """Partitions of the topics."""
    producer_linger_s: PositiveFloat = 0.005
    """Faust's default, 0, halves its clicks/s."""
    producer_max_batch_bytes: PositiveInt = 262_144
    """Faust's default, 16 kB, is a dozen states."""
    producer_acks: int = -1
    """All replicas, as our worker."""
    producer_buffer_messages: PositiveInt = 100_000
    """Faust's default, 100, makes it send one by one."""


def build_app(settings: NaiveSettings, answer: OneByOne) -> faust.App:
    app = faust.App(
        settings.app_id,
        broker=[URL(f"kafka://{server}") for server in settings.servers],
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        producer_acks=settings.producer_acks,
        producer_linger=settings.producer_linger_s,
        producer_max_batch_size=settings.producer_max_batch_bytes,
        producer_max_request_size=4_000_000,
        web_enabled=False,
        worker_redirect_stdouts=False,
    )

    raw: dict[str, Any] = {"key_type": bytes, "value_type": bytes}
    raw |= {"key_serializer": "raw", "value_serializer": "raw"}
    names = settings.clicks_topic, settings.recommendations_topic, settings.dead_letter_topic
    clicks, recommendations, dead_letters = (app.topic(name, **raw) for name in names)
    sessions = app.Table(
        "sessions", partitions=settings.partitions, key_type=bytes, value_type=bytes
    )

    async def send(topic: faust.TopicT, message: Message) -> None:
        headers = {name: value or b"" for name, value in message.headers}
        await topic.send(key=message.key, value=message.value, headers=headers)

    @app.agent(clicks)
    async def recommend(stream: faust.StreamT[bytes]) -> None:
        async for value in stream:
            event = stream.current_event
            assert event is not None
            message = event.message
            appended_ms = round(message.timestamp * 1000)
            record = Record(message.partition, message.offset, appended_ms, message.key, value)
            answered = answer(settings.clicks_topic, record, sessions.get(message.key))
            if isinstance(answered, BadClick):
                await send(dead_letters, dead_letter(settings.clicks_topic, record, answered))
                continue
            sessions[message.key], recommended = answered
            await send(recommendations, recommended)

    return app


def run(settings: NaiveSettings) -> int:
    configure_logging("info")
    ProducerBuffer.max_messages = settings.producer_buffer_messages
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    app = build_app(settings, OneByOne(settings.bundle))
    service = faust.Worker(
        app, loop=loop, quiet=True, override_logging=False, redirect_stdouts=False
    )
    service.spinner = None  # it sets the root logger to DEBUG: three log records a message
    try:
        service.execute_from_commandline()
    except SystemExit as ended:
        return int(ended.code or 0)


if __name__ == "__main__":
    sys.exit(run_command(NaiveSettings, run))
