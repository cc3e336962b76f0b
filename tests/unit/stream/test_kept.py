"""What version 0.1.0 (commit 8ec5a42) wrote is read on: a bundle, and a changelog of sessions."""

import base64
import json
from pathlib import Path

import pytest

from stream.batch import Planner, Rules
from stream.contract.messages import Target
from stream.contract.records import Record
from stream.model.models import Models, load_model
from stream.position import POSITION_KEY, BadClickLimit, decode_position
from stream.session import PartitionSessions, decode_state
from stream.table import States

KEPT = Path(__file__).parent / "kept"


def test_a_session_goes_on_where_the_old_worker_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # The kept clicks are of 1970, which is a bad timestamp by now.
    monkeypatch.setattr("stream.contract.click.EARLIEST_MS", 0)
    model = load_model(KEPT / "bundle")
    assert (model.manifest.allowed_lateness_s, model.manifest.event_types) == (600, ())
    partition = PartitionSessions()
    for line in (KEPT / "changelog.jsonl").read_text().splitlines():
        key, value = (base64.b64decode(part) for part in json.loads(line).values())
        if key == POSITION_KEY:
            position = decode_position(value)
        else:
            partition.restore(key, value)
    partition.finish_restore()
    sessions = States()
    sessions.own({0: partition})
    assert sessions.sizes() == {0: 3}
    assert (position.next_offset, position.watermark_ms, position.topic_id) == (
        7,
        6000,
        "kept-topic-id",
    )

    then = json.loads((KEPT / "next.json").read_text())
    record = Record(0, 7, 2_000_000, b"s", then["click"].encode())
    rules = Rules.of(model.manifest, BadClickLimit(1000, 0.5))
    planner = Planner(Models(model), rules, "clicks")
    plan = planner.plan({0: [record]}, {0: position}, sessions.get)
    planner.score(plan)
    planner.advance(plan)
    planner.answer(plan, 77)
    (message,) = plan.transaction.messages[Target.RECOMMENDATIONS][0]
    ours, theirs = json.loads(message.value or b""), then["recommendation"]
    for listed in (ours, theirs):
        listed["scores"] = [item.pop("score") for item in listed["items"]]
    assert ours.pop("scores") == pytest.approx(theirs.pop("scores"), abs=1e-6)
    assert ours == theirs
    state = decode_state(plan.transaction.changelog[0][b"s"] or b"")
    expected = decode_state(base64.b64decode(then["state"]))
    assert state.trail == expected.trail
    assert state.model_state.tolist() == pytest.approx(expected.model_state.tolist(), abs=1e-6)
