"""What faults have done, from the topics alone.

The reference is a fault-free run: the same clicks, read back from the clicks topic, go one by one
through the batch functions in this process. Where several bundles have served, each has its own,
and answers and states are compared with that of the bundle that they name.

Lists that are made with the view depend on how far it had been read, and so does whether an item
that the network does not know is answered from it. Where the bundle makes such lists, they are not
compared, and what the item processor has counted is (items.py).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.faults.items import ACCEPTED, Topics, counted
from bench.faults.service import Deployment
from bench.faults.traffic import Stored
from stream.batch import Planner, Rules
from stream.contract.messages import Target
from stream.model.bundle import Live
from stream.model.models import Models, load_model
from stream.position import POSITION_KEY, BadClickLimit, Position
from stream.session import decode_state, seen_ms
from stream.settings import KafkaSettings
from stream.transport.topics import largest_click


@dataclass(frozen=True)
class Verdict:
    """All zeros after an exact run."""

    missing: int
    duplicates: int
    different: int
    wrong_states: int
    over_applied: int
    """Clicks that sessions count beyond those of the log."""
    under_applied: int
    """Clicks of the log that no session counts."""
    state_error: float
    """Largest difference of a model state; one click of a counting bundle makes 1."""
    over_counted: int = 0
    """Events of items that are counted beyond those of the log."""
    under_counted: int = 0
    """Events of the log that no item counts."""
    wrong_counts: int = 0
    """Items whose counts are not those of their events."""
    evidence: tuple[str, ...] = ()
    """Where the copies of a recommendation stand, and how the workers ended."""

    @property
    def exact(self) -> bool:
        return self.state_error < 1e-5 and not (
            self.missing
            or self.duplicates
            or self.different
            or self.wrong_states
            or self.over_applied
            or self.under_applied
            or self.over_counted
            or self.under_counted
            or self.wrong_counts
        )


def verdict(deployment: Deployment, *others: Path) -> Verdict:
    """Compare recommendations and final states with those of a fault-free run.

    others: bundles that have served as well. A session that one took over from another must not
    have outgrown its trail.
    """
    clicks = deployment.read(deployment.clicks)
    runs = {b.name: _fault_free(deployment, b, clicks) for b in {deployment.bundle, *others}}
    own = runs[deployment.bundle.name]
    found = deployment.read(deployment.recommendations)
    by_source: dict[str, Stored] = {}
    copies: list[tuple[Stored, Stored]] = []
    for record in found:
        source = record.headers["source"].decode()
        if source in by_source:
            copies.append((by_source[source], record))
        by_source[source] = record
    different = 0
    outcomes: dict[tuple[int, int], str] = {}
    for source, record in by_source.items():
        assert record.value is not None
        answer = _essence(record.value)
        theirs = _essence(runs.get(answer["model"], own).answers[source])
        if own.live:
            partition, offset = source.rsplit("-", 2)[1:]
            outcomes[int(partition), int(offset)] = answer["outcome"]
            answer, theirs = _without_view(answer), _without_view(theirs)
        different += answer != theirs
    found_states = sessions_in_changelog(deployment)
    # Expiry collects a dead session when it gets round to it.
    states = {name: decode_state(r) for name, r in found_states.items() if name not in own.dead}
    wrong = len(states.keys() ^ own.states.keys())
    over_applied = sum(states[name].n_clicks for name in states.keys() - own.states.keys())
    under_applied = 0
    state_error = 0.0
    for name, raw in own.states.items():
        if name not in states:
            under_applied += decode_state(raw).n_clicks
            continue
        ours = states[name]
        state = decode_state(runs.get(ours.bundle_id, own).states[name])
        over_applied += max(0, ours.n_clicks - state.n_clicks)
        under_applied += max(0, state.n_clicks - ours.n_clicks)
        wrong += (ours.n_clicks, ours.trail, ours.seen_ms, ours.last_click_ms) != (
            state.n_clicks,
            state.trail,
            state.seen_ms,
            state.last_click_ms,
        )
        # Another bundle's list is not judged: taking it over resets the outcome.
        wrong += not (others or own.live) and ours.last_outcome != state.last_outcome
        state_error = max(state_error, float(np.abs(ours.model_state - state.model_state).max()))
    items = None
    if own.live:
        of_items = deployment.item_events, deployment.items_changelog, deployment.item_view
        topics = Topics(clicks, *map(deployment.read, of_items))
        items = counted(topics, own.live.rules, outcomes)
    return Verdict(
        missing=len(own.answers.keys() - by_source.keys()),
        duplicates=len(copies),
        different=different,
        wrong_states=wrong,
        over_applied=over_applied,
        under_applied=under_applied,
        state_error=state_error,
        over_counted=items.over_counted if items else 0,
        under_counted=items.under_counted if items else 0,
        wrong_counts=items.wrong_counts if items else 0,
        evidence=(
            *((items.told,) if items else ()),
            *map(_told, copies[:3]),
            *map(_told, copies[-3:]),
            *deployment.endings(),
        ),
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


def _essence(value: bytes) -> dict[str, Any]:
    """A recommendation without its time and the last bits of its scores."""
    answer: dict[str, Any] = json.loads(value)
    answer["items"] = [item["item_id"] for item in answer["items"]]
    del answer["published_ms"]
    return answer


def _without_view(answer: dict[str, Any]) -> dict[str, Any]:
    """What is left of an answer without what came of the view."""
    outcome = "accepted" if answer["outcome"] in ACCEPTED else answer["outcome"]
    return {**answer, "outcome": outcome, "items": None, "view_ms": None}


@dataclass(frozen=True)
class _FaultFree:
    """Answers by source; live states; names of dead sessions; what live lists need."""

    answers: dict[str, bytes]
    states: dict[tuple[int, bytes], bytes]
    dead: set[tuple[int, bytes]]
    live: Live | None


def _fault_free(deployment: Deployment, bundle: Path, clicks: Sequence[Stored]) -> _FaultFree:
    """Answer every click of the topic, one at a time, with nothing but the batch functions."""
    model = load_model(bundle)
    rules = Rules.of(model.manifest, BadClickLimit(1_000_000, 1.0))
    largest = largest_click(KafkaSettings.model_validate(deployment.settings()))
    planner = Planner(Models(model, largest), rules, deployment.clicks)
    states: dict[tuple[int, bytes], bytes] = {}
    positions: dict[int, Position] = {}
    answers: dict[str, bytes] = {}

    def lookup(partition: int, key: bytes) -> bytes | None:
        return states.get((partition, key))

    for r in clicks:
        position = positions.setdefault(r.partition, Position(r.offset, "any"))
        plan = planner.plan({r.partition: [r.record]}, {r.partition: position}, lookup)
        planner.score(plan)
        planner.advance(plan)
        planner.answer(plan, 0)
        positions |= plan.transaction.positions
        for key, raw in plan.transaction.changelog[r.partition].items():
            assert raw is not None, "only expiry deletes"
            states[r.partition, key] = raw
        for message in plan.transaction.messages[Target.RECOMMENDATIONS][r.partition]:
            source = dict(message.headers)["source"]
            assert message.value is not None and source is not None
            answers[source.decode()] = message.value
    dead = {
        name
        for name, raw in states.items()
        if rules.is_dead(seen_ms(raw), positions[name[0]].watermark_ms)
    }
    of_living = {name: raw for name, raw in states.items() if name not in dead}
    return _FaultFree(answers, of_living, dead, model.manifest.live)
