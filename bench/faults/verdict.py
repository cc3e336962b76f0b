"""What faults have done, from the topics alone.

The reference is a fault-free run: the same clicks, read back from the clicks topic, go one by one
through the batch functions in this process.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.faults.service import Deployment
from bench.faults.traffic import Stored
from stream.batch import Planner, Rules
from stream.contract.messages import Target
from stream.contract.records import Record
from stream.model.models import Models, load_model
from stream.position import POSITION_KEY, BadClickLimit, Position
from stream.session import decode_state, last_click_ms


@dataclass(frozen=True)
class Verdict:
    """All zeros after an exact run."""

    missing: int
    duplicates: int
    different: int
    wrong_states: int
    state_error: float
    evidence: tuple[str, ...] = ()
    """Where the copies of a recommendation stand, and how the workers ended."""

    @property
    def exact(self) -> bool:
        return self.state_error < 1e-5 and not (
            self.missing or self.duplicates or self.different or self.wrong_states
        )


def verdict(deployment: Deployment) -> Verdict:
    """Compare recommendations and final states with those of a fault-free run."""
    expected_answers, expected_states, dead = _fault_free(deployment)
    found = deployment.read(deployment.recommendations)
    by_source: dict[str, Stored] = {}
    copies: list[tuple[Stored, Stored]] = []
    for record in found:
        source = record.headers["source"].decode()
        if source in by_source:
            copies.append((by_source[source], record))
        by_source[source] = record
    different = 0
    for source, record in by_source.items():
        assert record.value is not None
        different += _essence(record.value) != _essence(expected_answers[source])
    found_states = sessions_in_changelog(deployment)
    # Expiry collects a dead session when it gets round to it.
    states = {name: raw for name, raw in found_states.items() if name not in dead}
    wrong = len(states.keys() ^ expected_states.keys())
    state_error = 0.0
    for name in states.keys() & expected_states.keys():
        ours, theirs = decode_state(states[name]), decode_state(expected_states[name])
        wrong += (ours.n_clicks, ours.trail, ours.last_click_ms, ours.last_outcome) != (
            theirs.n_clicks,
            theirs.trail,
            theirs.last_click_ms,
            theirs.last_outcome,
        )
        state_error = max(state_error, float(np.abs(ours.model_state - theirs.model_state).max()))
    return Verdict(
        missing=len(expected_answers.keys() - by_source.keys()),
        duplicates=len(copies),
        different=different,
        wrong_states=wrong,
        state_error=state_error,
        evidence=(*map(_told, copies[:3]), *map(_told, copies[-3:]), *deployment.endings()),
    )


def _told(copy: tuple[Stored, Stored]) -> str:
    first, second = (
        f"{r.partition}@{r.offset} of {json.loads(r.value or b'{}').get('published_ms')}"
        for r in copy
    )
    return f"{first} again at {second}"


def sessions_in_changelog(deployment: Deployment) -> dict[tuple[int, bytes], bytes]:
    """The last state of each session in the changelog, tombstones applied."""
    states: dict[tuple[int, bytes], bytes] = {}
    for record in deployment.read(deployment.changelog):
        assert record.key is not None
        if record.value is None:
            states.pop((record.partition, record.key), None)
        elif record.key != POSITION_KEY:
            states[record.partition, record.key] = record.value
    return states


def _essence(value: bytes) -> Any:
    """A recommendation without its time and the last bits of its scores."""
    answer = json.loads(value)
    answer["items"] = [item["item_id"] for item in answer["items"]]
    del answer["published_ms"]
    return answer


def _fault_free(
    deployment: Deployment,
) -> tuple[dict[str, bytes], dict[tuple[int, bytes], bytes], set[tuple[int, bytes]]]:
    """Answer every click of the topic, one at a time, with nothing but the batch functions.

    Returns the answers by source, the live states, and the names of dead sessions.
    """
    model = load_model(deployment.bundle)
    rules = Rules.of(model.manifest, BadClickLimit(1_000_000, 1.0))
    planner = Planner(Models(model), rules, deployment.clicks)
    states: dict[tuple[int, bytes], bytes] = {}
    positions: dict[int, Position] = {}
    answers: dict[str, bytes] = {}

    def lookup(partition: int, key: bytes) -> bytes | None:
        return states.get((partition, key))

    for r in deployment.read(deployment.clicks):
        position = positions.setdefault(r.partition, Position(r.offset, "any"))
        record = Record(r.partition, r.offset, r.timestamp_ms, r.key, r.value)
        plan = planner.plan({r.partition: [record]}, {r.partition: position}, lookup)
        scores = plan.score()
        planner.advance(plan, scores)
        planner.answer(plan, scores, 0)
        positions |= plan.transaction.positions
        for key, raw in plan.transaction.changelog[r.partition].items():
            assert raw is not None, "only expiry deletes"
            states[r.partition, key] = raw
        for message in plan.transaction.messages[Target.RECOMMENDATIONS][r.partition]:
            assert message.value is not None
            answers[dict(message.headers)["source"].decode()] = message.value
    dead = {
        name
        for name, raw in states.items()
        if rules.is_dead(last_click_ms(raw), positions[name[0]].watermark_ms)
    }
    return answers, {n: raw for n, raw in states.items() if n not in dead}, dead
