"""A new bundle of another architecture amid load, with the graphs that export writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.serving.bundles import write_tiny_bundle
from stream.batch import Rules
from stream.contract.click import Record
from stream.model.bundle import Bundle, load_bundle
from stream.model.scorer import OnnxScorer
from stream.position import BadClickLimit
from stream.session import decode_state
from tests.unit.stream.replay import BEGIN_MS, RECORD_MS, Replay
from train.data.context import ContextField

N_ITEMS, N_CLICKS, SWAP, BATCH = 40, 600, 330, 24
RULES = Rules(None, 0, BadClickLimit(1000, 0.5))
EVENT_TYPE = ContextField(name="event_type", kind="column", values=("view", "cart"))
PRICE = ContextField(name="price", kind="column", values=("9.5", "10"))
GAP = ContextField(name="gap", kind="gap", edges_s=(0.1, 0.5, 2.0))
MODELS: dict[str, dict[str, Any]] = {
    "gru": {},
    "gru with context": {"context": (PRICE, EVENT_TYPE)},
    "lstm with context": {
        "cell": "lstm",
        "n_layers": 2,
        "context": (GAP, EVENT_TYPE, PRICE),
        "transition_context": "matrices",
    },
    "window with context": {"cell": "window", "context": (EVENT_TYPE, GAP)},
}


def bundle_of(name: str, folder: Path) -> Bundle:
    """Each over items of its own: three quarters of each catalogue are the other's too."""
    first = 10 * list(MODELS).index(name) % 20
    return load_bundle(
        write_tiny_bundle(
            folder,
            n_items=N_ITEMS,
            seed=first,
            item_ids=[f"item-{n}" for n in range(first, first + N_ITEMS)],
            idle_timeout_s=None,
            **MODELS[name],
        )
    )


def load(*, silent_until: int = 0) -> list[Record]:
    """Clicks of 30 sessions, some of them late or repeated; the first ones say no context."""
    random = np.random.default_rng(8)
    records = []
    for offset in range(N_CLICKS):
        session = f"s{random.integers(30)}"
        said = {
            "event_type": random.choice(["view", "cart", "purchase"]),
            "price": random.choice([9.5, 10.0, 11.0]),
        }
        value = {
            "session_id": session,
            "item_id": f"item-{random.integers(N_ITEMS + 20)}",
            "timestamp_ms": int(BEGIN_MS + offset * 40 + random.integers(-200, 200)),
            "event_id": f"e{offset if random.random() < 0.95 else offset - 7}",
            **({} if offset < silent_until else said),
        }
        records.append(Record(0, offset, RECORD_MS, session.encode(), json.dumps(value).encode()))
    return records


def served(bundle: Bundle, log: list[Record], replay: Replay | None = None) -> Replay:
    """Batch after batch under this bundle."""
    replay = replay or Replay(bundle, OnnxScorer(bundle), RULES)
    replay.bundle, replay.scorer = bundle, OnnxScorer(bundle)
    return replay.run(log[at : at + BATCH] for at in range(0, len(log), BATCH))


@pytest.mark.parametrize(
    ("old", "new", "silent_until"),
    [
        ("gru", "lstm with context", SWAP),  # the old bundle kept no column of a click
        ("gru with context", "lstm with context", 0),
        ("lstm with context", "window with context", 0),
        ("window with context", "gru", 0),
    ],
)
def test_sessions_go_on_as_if_the_new_bundle_had_served_them_from_the_beginning(
    old: str, new: str, silent_until: int, tmp_path: Path
) -> None:
    """``silent_until``: clicks whose columns were lost, as their bundle did not declare them."""
    before, after = bundle_of(old, tmp_path), bundle_of(new, tmp_path)
    log = load()
    swapped = served(before, log[:SWAP])
    published = len(swapped.messages[0])
    served(after, log[SWAP:], swapped)
    stayed = served(after, load(silent_until=silent_until))

    assert len(swapped.messages[0]) == N_CLICKS
    assert swapped.messages[0][published:] == stayed.messages[0][SWAP:]
    assert sum(output.counts.rebuilt for output in swapped.outputs) == 30
    for key, raw in swapped.partition(0).states.items():
        ours, theirs = decode_state(raw), decode_state(stayed.partition(0).states[key])
        assert ours.model_state.size == after.manifest.state_size
        assert ours.model_state.tobytes() == theirs.model_state.tobytes()
        assert (ours.last_click_ms, ours.n_clicks) == (theirs.last_click_ms, theirs.n_clicks)
