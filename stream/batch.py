"""The heart: clicks and states in, what to publish and what to persist out.

Pure and synchronous. Three steps, so that only the middle one needs a thread:
``plan_batch`` parses and resumes (steps 1 and 2 of a click's path), ``Waves.score`` runs the
model (3), ``finish_batch`` writes the records (4). Neither Faust nor a clock is known here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from jaxtyping import Float32, Int32

from stream.contract.click import BadClick, Click, Record
from stream.contract.messages import Item, Message, Outcome, dead_letter, recommendation
from stream.model.bundle import Bundle
from stream.model.scorer import Scores, Waves
from stream.position import BadClickLimit, Position
from stream.session import (
    TRAIL_CLICKS,
    LastOutcome,
    SessionState,
    TrailClick,
    decode_state,
    encode_state,
)

Lookup = Callable[[int, bytes], bytes | None]
"""(partition, session) -> the state's bytes, or None."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides a click's fate beside the model. None: sessions never expire."""

    idle_timeout_ms: int | None
    allowed_lateness_ms: int
    limit: BadClickLimit

    def is_dead(self, last_click_ms: int, watermark_ms: int) -> bool:
        """Whether no click behind the watermark can find this session any more."""
        return (
            self.idle_timeout_ms is not None
            and watermark_ms - last_click_ms > self.idle_timeout_ms + self.allowed_lateness_ms
        )

    def is_past_gap(self, last_click_ms: int, timestamp_ms: int) -> bool:
        """Whether a click comes too long after its session's last one to continue it."""
        return (
            self.idle_timeout_ms is not None and timestamp_ms - last_click_ms > self.idle_timeout_ms
        )


class Judgement(msgspec.Struct):
    """A click that tells how good the session's last list was. ``rank`` 0: not in it."""

    late: bool
    rank: int


@dataclass(slots=True)
class PartitionOutput:
    """Everything one partition's transaction carries, and what the metrics count."""

    position: Position
    recommendations: list[Message] = field(default_factory=list)
    dead_letters: list[Message] = field(default_factory=list)
    states: dict[bytes, bytes] = field(default_factory=dict)
    touched: set[bytes] = field(default_factory=set)
    answered: list[tuple[Record, int, Outcome]] = field(default_factory=list)
    rejected: list[tuple[Record, BadClick]] = field(default_factory=list)
    holes: list[tuple[int, int]] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    skipped: int = 0
    late: int = 0
    expired: int = 0
    rebuilt: int = 0


class _Stored(msgspec.Struct, frozen=True):
    """A list out of the session's state."""

    top_index: Int32[np.ndarray, "K"]
    top_score: Float32[np.ndarray, "K"]


_ListRef = int | _Stored | None
"""A list: row of this batch's rank call, out of the state, or none (popularity answers)."""


class _Session(msgspec.Struct):
    """One session while its clicks of this batch are planned. ``row``: its row in the waves."""

    row: int
    last_click_ms: int
    n_clicks: int
    last_outcome: LastOutcome
    trail: list[TrailClick]
    current: _ListRef
    changed: bool = False


class _Answer(msgspec.Struct):
    output: PartitionOutput
    record: Record
    click: Click
    outcome: Outcome
    listed: _ListRef


@dataclass(slots=True)
class Plan:
    """What the model has to compute, and for whom."""

    outputs: dict[int, PartitionOutput] = field(default_factory=dict)
    waves: Waves = field(default_factory=Waves)
    answers: list[_Answer] = field(default_factory=list)
    to_judge: list[tuple[PartitionOutput, _ListRef, int, bool]] = field(default_factory=list)
    sessions: dict[tuple[int, bytes], _Session] = field(default_factory=dict)


def plan_batch(
    records: Mapping[int, Sequence[Record]],
    positions: Mapping[int, Position],
    lookup: Lookup,
    bundle: Bundle,
    rules: Rules,
    topic: str,
) -> Plan:
    """Return the plan of one micro-batch: every record parsed, every session resumed.

    records: by partition, in order of offset. positions: of each of these partitions; they are
    copied, not changed. Raises BadClickLimitError; nothing has been done then.
    """
    plan = Plan()
    for partition, of_partition in records.items():
        position = positions[partition].copy()
        output = plan.outputs[partition] = PartitionOutput(position)
        for record in of_partition:
            if record.offset < position.next_offset:
                output.skipped += 1
                continue
            if record.offset > position.next_offset:
                output.holes.append((position.next_offset, record.offset))
            position.next_offset = record.offset + 1
            click = bundle.parse_click(record)
            if isinstance(click, BadClick):
                rules.limit.count_bad(position, topic, partition, record.offset)
                output.rejected.append((record, click))
                output.dead_letters.append(dead_letter(topic, record, click))
            else:
                rules.limit.count_good(position)
                output.touched.add(click.session)
                _plan_click(plan, output, record, click, lookup, bundle, rules)
                position.watermark_ms = max(position.watermark_ms, click.timestamp_ms)
    return plan


def _plan_click(
    plan: Plan,
    output: PartitionOutput,
    record: Record,
    click: Click,
    lookup: Lookup,
    bundle: Bundle,
    rules: Rules,
) -> None:
    session = _resume(plan, output, record.partition, click, lookup, bundle, rules)
    if _is_repeated(click, session.trail):
        plan.answers.append(_Answer(output, record, click, Outcome.DUPLICATE, session.current))
        return
    index = bundle.item_index.get(click.item_id)
    late = click.timestamp_ms < session.last_click_ms
    output.late += late
    session.changed = True
    session.n_clicks += 1
    session.trail.append(
        TrailClick(click.item_id, click.timestamp_ms, click.event_hash, click.context)
    )
    del session.trail[:-TRAIL_CLICKS]
    if index is None:
        known_list = session.current is not None
        session.last_outcome = LastOutcome.UNKNOWN_ITEM if known_list else LastOutcome.FALLBACK
        outcome = Outcome.UNKNOWN_ITEM if known_list else Outcome.FALLBACK
        plan.answers.append(_Answer(output, record, click, outcome, session.current))
        return
    if session.last_outcome is LastOutcome.MODEL:
        plan.to_judge.append((output, session.current, index, late))
    session.last_outcome = LastOutcome.MODEL
    is_first = session.current is None  # every known item leaves a list
    session.current = _step(plan, session, bundle, index, click, is_first=is_first, ranked=True)
    plan.answers.append(_Answer(output, record, click, Outcome.MODEL, session.current))


def _resume(
    plan: Plan,
    output: PartitionOutput,
    partition: int,
    click: Click,
    lookup: Lookup,
    bundle: Bundle,
    rules: Rules,
) -> _Session:
    """Return the click's session: new, live, expired and fresh, or rebuilt from its trail."""
    name = (partition, click.session)
    session = plan.sessions.get(name)
    state = None
    if session is None:
        raw = lookup(partition, click.session)
        if raw is None:
            return _fresh(plan, name, click)
        state = decode_state(raw)
    past = session or state
    assert past is not None
    # The order of the rules makes the outcome a function of the log alone, whether or not expiry
    # has collected the session: first what the watermark calls dead, then a repeated event
    # (whatever its timestamp), then the click's own gap.
    if rules.is_dead(past.last_click_ms, output.position.watermark_ms) or (
        rules.is_past_gap(past.last_click_ms, click.timestamp_ms)
        and not _is_repeated(click, past.trail)
    ):
        output.expired += 1
        return _fresh(plan, name, click)
    if session is None:
        assert state is not None
        session = plan.sessions[name] = _from_state(plan, output, state, bundle)
    return session


def _is_repeated(click: Click, trail: Sequence[TrailClick]) -> bool:
    return click.event_hash != 0 and any(c.event_hash == click.event_hash for c in trail)


def _fresh(plan: Plan, name: tuple[int, bytes], click: Click) -> _Session:
    row = plan.waves.add_session(None)
    session = _Session(row, click.timestamp_ms, 0, LastOutcome.FALLBACK, [], current=None)
    plan.sessions[name] = session
    return session


def _from_state(
    plan: Plan, output: PartitionOutput, state: SessionState, bundle: Bundle
) -> _Session:
    same_model = state.bundle_id == bundle.manifest.bundle_id
    session = _Session(
        plan.waves.add_session(state.model_state if same_model else None),
        state.last_click_ms,
        state.n_clicks,
        state.last_outcome,
        list(state.trail),
        _Stored(state.top_index, state.top_score) if state.top_index.size else None,
    )
    if same_model:
        return session
    # Another model made the state and the list: run the trail through this one. Its list was never
    # published, so the next click does not judge it. The time of the last click is that of the last
    # item known to this model, as if it had served the session from the trail's beginning.
    index = bundle.item_index
    known = [(index[c.item_id], c) for c in session.trail if c.item_id in index]
    session.last_click_ms = session.trail[0].timestamp_ms
    session.current = None
    for n, (item, click) in enumerate(known, start=1):
        session.current = _step(
            plan, session, bundle, item, click, is_first=n == 1, ranked=n == len(known)
        )
    session.last_outcome = LastOutcome.UNKNOWN_ITEM if known else LastOutcome.FALLBACK
    session.changed = True
    output.rebuilt += 1
    return session


def _step(
    plan: Plan,
    session: _Session,
    bundle: Bundle,
    index: int,
    click: Click | TrailClick,
    *,
    is_first: bool,
    ranked: bool,
) -> int:
    """Advance a session by a known item; returns the row of its list, or -1 if not ``ranked``."""
    gap_ms = None if is_first else click.timestamp_ms - session.last_click_ms
    session.last_click_ms = max(session.last_click_ms, click.timestamp_ms)
    context = bundle.context.indices(click.context, click.timestamp_ms, gap_ms)
    return plan.waves.step(session.row, index, context, ranked=ranked)


def finish_batch(
    plan: Plan, scores: Scores, bundle: Bundle, topic: str, published_ms: int
) -> dict[int, PartitionOutput]:
    """Return, by partition, the records of its transaction and the advanced position."""
    bundle_id = bundle.manifest.bundle_id
    item_ids = bundle.item_ids
    top_index = scores.top_index.tolist()
    top_score = scores.top_score.tolist()
    popular = [Item(item_ids[p.item_index], p.score) for p in bundle.manifest.popular]

    def items_of(listed: _ListRef) -> list[Item]:
        if listed is None:
            return popular
        if isinstance(listed, int):
            index, score = top_index[listed], top_score[listed]
        else:
            index, score = listed.top_index.tolist(), listed.top_score.tolist()
        return [Item(item_ids[i], s) for i, s in zip(index, score, strict=True)]

    for answer in plan.answers:
        answer.output.recommendations.append(
            recommendation(
                topic,
                answer.record,
                answer.click,
                items_of(answer.listed),
                bundle_id,
                answer.outcome,
                published_ms,
            )
        )
        answer.output.answered.append((answer.record, answer.click.timestamp_ms, answer.outcome))
    for output, listed, target, late in plan.to_judge:
        output.judgements.append(Judgement(late, _rank_of(target, listed, scores)))
    for (partition, key), session in plan.sessions.items():
        if session.changed:
            plan.outputs[partition].states[key] = encode_state(
                _state_of(session, scores, bundle_id)
            )
    return plan.outputs


def _list_of(
    listed: int | _Stored, scores: Scores
) -> tuple[Int32[np.ndarray, "K"], Float32[np.ndarray, "K"]]:
    if isinstance(listed, int):
        return scores.top_index[listed], scores.top_score[listed]
    return listed.top_index, listed.top_score


def _rank_of(target: int, listed: _ListRef, scores: Scores) -> int:
    """Rank of an item in a list, from 1; the last position of its score (ties count against)."""
    assert listed is not None, "only a list of the model is judged"
    top_index, top_score = _list_of(listed, scores)
    items = top_index.tolist()
    if target not in items:
        return 0
    return int(np.flatnonzero(top_score == top_score[items.index(target)])[-1]) + 1


def _state_of(session: _Session, scores: Scores, bundle_id: str) -> SessionState:
    if session.current is None:
        top_index, top_score = np.empty(0, np.int32), np.empty(0, np.float32)
    else:
        top_index, top_score = _list_of(session.current, scores)
    return SessionState(
        bundle_id,
        session.last_click_ms,
        session.n_clicks,
        session.last_outcome,
        tuple(session.trail),
        scores.state[session.row],
        top_index,
        top_score,
    )
