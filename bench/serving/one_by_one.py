"""A click answered by itself: what the competitors share, so that they differ by their path alone.

Clicks are parsed, states encoded and messages written with our functions; one graph leads from
click to list. It does less than our worker: no repeated events, no list for an item that is unknown
to the model (the load has neither), no context, no expiry, no change of the model.

The Quix application imports this from an environment of its own: no Kafka client, no Faust here.
"""

import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import compose, helper

from stream.contract.click import BadClick, Click, ClickParser, Reason, Record
from stream.contract.messages import Item, Message, Outcome, encode_json, recommendation
from stream.model.bundle import Bundle, load_bundle
from stream.session import (
    TRAIL_CLICKS,
    LastOutcome,
    SessionState,
    TrailClick,
    decode_state,
    encode_state,
)


def one_graph(bundle: Bundle) -> onnx.ModelProto:
    """From click to list: the bundle's two graphs, joined at the query."""
    encode = onnx.load_from_string(bundle.encode())
    rank = compose.add_prefix(onnx.load_from_string(bundle.rank()), "rank/")
    graph = encode.graph
    graph.node.append(helper.make_node("Identity", ["query"], ["rank/query"]))
    graph.node.extend(rank.graph.node)
    graph.initializer.extend(rank.graph.initializer)
    graph.output.extend(rank.graph.output)
    onnx.checker.check_model(encode)
    return encode


class Model:
    def __init__(self, bundle: Bundle) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
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
    last_click_ms = max(click.timestamp_ms, before.last_click_ms if before else 0)
    return SessionState(
        bundle.manifest.bundle_id,
        last_click_ms,
        last_click_ms,
        before.n_clicks + 1 if before else 1,
        LastOutcome.MODEL,
        (*trail, now)[-TRAIL_CLICKS:],
        *listed,
    )


class OneByOne:
    """Answers clicks one at a time."""

    def __init__(self, folder: Path) -> None:
        self._bundle = load_bundle(folder)
        self._model = Model(self._bundle)
        self._parse_click = ClickParser()

    def __call__(
        self, topic: str, record: Record, stored: bytes | None
    ) -> tuple[bytes, Message] | BadClick:
        """Return the session's bytes after the click, and the message that answers it."""
        click = self._parse_click(record)
        if isinstance(click, Click) and click.item_id not in self._bundle.item_index:
            click = BadClick(Reason.BAD_ITEM_ID, "the model has never seen this item")
        if isinstance(click, BadClick):
            return click
        state = advance(self._bundle, self._model, click, stored)
        listed = zip(state.top_index.tolist(), state.top_score.tolist(), strict=True)
        items = [Item(self._bundle.item_ids[index], score) for index, score in listed]
        now_ms, what = time.time_ns() // 1_000_000, (state.bundle_id, Outcome.MODEL)
        return encode_state(state), recommendation(
            topic, record, click, encode_json(items), *what, now_ms
        )
