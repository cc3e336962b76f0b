"""The competitor: the same job as our worker's, written as Faust's guide shows.

One click at a time, ``async for`` over the stream, ``table[key] = value``, ``topic.send`` for each
list, one graph from click to list. It parses clicks, encodes states and writes messages with our
functions, and has uvloop and the producer settings with which Faust is fastest, so that the ratio
is about the path alone. It does less: no repeated events, no list for an item that is unknown to
the model (the load has neither), no context, no expiry, no change of the model. And it promises
less: a fault loses clicks or applies them twice.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import faust
import numpy as np
import onnx
import onnxruntime
import uvloop
from faust.transport.producer import ProducerBuffer
from onnx import compose, helper
from pydantic import Field, PositiveFloat, PositiveInt
from yarl import URL

from stream.contract.click import BadClick, Click, ClickParser, Reason, Record
from stream.contract.messages import Item, Message, Outcome, dead_letter, recommendation
from stream.logs import configure_logging
from stream.model.bundle import Bundle, load_bundle
from stream.session import (
    TRAIL_CLICKS,
    LastOutcome,
    SessionState,
    TrailClick,
    decode_state,
    encode_state,
)
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
    inference_threads: PositiveInt = Field(default=1)
    """Threads of the ONNX call."""


def one_graph(bundle: Bundle) -> onnx.ModelProto:
    """From click to list: the bundle's two graphs, joined at the query."""
    encode = onnx.load(bundle.encode_path)
    rank = compose.add_prefix(onnx.load(bundle.rank_path), "rank/")
    graph = encode.graph
    graph.node.append(helper.make_node("Identity", ["query"], ["rank/query"]))
    graph.node.extend(rank.graph.node)
    graph.initializer.extend(rank.graph.initializer)
    graph.output.extend(rank.graph.output)
    onnx.checker.check_model(encode)
    return encode


class Model:
    def __init__(self, bundle: Bundle, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            one_graph(bundle).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._shape = (1, bundle.manifest.state_size)

    def step(
        self, item_index: int, state: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the state, the list's indices and its scores after one click."""
        before = np.zeros(self._shape, np.float32) if state is None else state
        after, index, score = self._session.run(
            ["state_out", "rank/top_index", "rank/top_score"],
            {"item_index": np.array([item_index]), "state": before.reshape(self._shape)},
        )
        return after[0], index[0], score[0]


def advance(bundle: Bundle, model: Model, click: Click, stored: bytes | None) -> SessionState:
    idle_timeout_s = bundle.manifest.idle_timeout_s
    before = decode_state(stored) if stored else None
    if before and idle_timeout_s is not None:
        idle_ms = click.timestamp_ms - before.last_click_ms
        before = before if idle_ms <= idle_timeout_s * 1000 else None
    listed = model.step(bundle.item_index[click.item_id], before.model_state if before else None)
    trail = before.trail if before else ()
    now = TrailClick(click.item_id, click.timestamp_ms, click.event_hash)
    return SessionState(
        bundle.manifest.bundle_id,
        max(click.timestamp_ms, before.last_click_ms if before else 0),
        before.n_clicks + 1 if before else 1,
        LastOutcome.MODEL,
        (*trail, now)[-TRAIL_CLICKS:],
        *listed,
    )


def build_app(settings: NaiveSettings, bundle: Bundle, model: Model) -> faust.App:
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

    parse_click = ClickParser()

    async def send(topic: faust.TopicT, message: Message) -> None:
        await topic.send(key=message.key, value=message.value, headers=dict(message.headers))

    @app.agent(clicks)
    async def recommend(stream: faust.StreamT[bytes]) -> None:
        async for value in stream:
            event = stream.current_event
            assert event is not None
            message = event.message
            appended_ms = round(message.timestamp * 1000)
            record = Record(message.partition, message.offset, appended_ms, message.key, value)
            click = parse_click(record)
            if isinstance(click, Click) and click.item_id not in bundle.item_index:
                click = BadClick(Reason.BAD_ITEM_ID, "the model has never seen this item")
            if isinstance(click, BadClick):
                letter = dead_letter(settings.clicks_topic, record, click)
                await send(dead_letters, letter)
                continue
            state = advance(bundle, model, click, sessions.get(click.session))
            sessions[click.session] = encode_state(state)
            listed = zip(state.top_index.tolist(), state.top_score.tolist(), strict=True)
            items = [Item(bundle.item_ids[index], score) for index, score in listed]
            now_ms, what = time.time_ns() // 1_000_000, (state.bundle_id, Outcome.MODEL)
            answer = recommendation(settings.clicks_topic, record, click, items, *what, now_ms)
            await send(recommendations, answer)

    return app


def run(settings: NaiveSettings) -> int:
    configure_logging("info")
    bundle = load_bundle(settings.bundle)
    ProducerBuffer.max_messages = settings.producer_buffer_messages
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    app = build_app(settings, bundle, Model(bundle, settings.inference_threads))
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
