"""The heart: clicks and states in, what to publish and what to persist out.

Pure and synchronous; no clock and no Kafka. Four steps, of which only the middle one may need a
thread: ``Planner.plan`` parses clicks and resumes sessions, ``Plan.score`` runs the models, and
``Planner.advance`` writes the states, which the next batch is planned on, and ``Planner.answer``
the answers, which may come later.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from jaxtyping import Float32, Int32

from stream.contract.click import BadClick, Click
from stream.contract.messages import Item, Outcome, Target, dead_letter, recommendation
from stream.contract.records import Record
from stream.counts import Answered, BatchCounts, Judgement, rank_in_list
from stream.model.bundle import Manifest
from stream.model.models import Model, Models
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
from stream.transport.protocol import Transaction

Lookup = Callable[[int, bytes], bytes | None]
"""(partition, session) -> the state's bytes, or None."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides a click's fate besides the model. None: sessions never expire."""

    idle_timeout_ms: int | None
    allowed_lateness_ms: int
    limit: BadClickLimit

    @classmethod
    def of(cls, manifest: Manifest, limit: BadClickLimit) -> "Rules":
        """Return the rules that a manifest sets, with the operator's limit."""
        idle_s = manifest.idle_timeout_s
        idle_ms = None if idle_s is None else idle_s * 1000
        return cls(idle_ms, manifest.allowed_lateness_s * 1000, limit)

    def is_dead(self, last_click_ms: int, watermark_ms: int) -> bool:
        """Whether no click after the watermark can find this session any more."""
        return self.is_past_gap(last_click_ms, watermark_ms - self.allowed_lateness_ms)

    def is_past_gap(self, last_click_ms: int, timestamp_ms: int) -> bool:
        """Whether a click comes too long after its session's last one to continue it."""
        idle_timeout_ms = self.idle_timeout_ms
        return idle_timeout_ms is not None and timestamp_ms - last_click_ms > idle_timeout_ms


class _Stored(msgspec.Struct, frozen=True):
    """A list out of the session's state."""

    top_index: Int32[np.ndarray, "K"]
    top_score: Float32[np.ndarray, "K"]


_ListRef = int | _Stored | None
"""A list: row of its model's rank call in this batch, out of the state, or none (popularity)."""


class _Session(msgspec.Struct):
    """One session while its clicks of this batch are planned. ``row``: its row in the waves."""

    model: Model
    waves: Waves
    row: int
    last_click_ms: int
    n_clicks: int
    last_outcome: LastOutcome
    trail: list[TrailClick]
    current: _ListRef
    changed: bool = False


class _Answer(msgspec.Struct):
    record: Record
    click: Click
    model: Model
    outcome: Outcome
    listed: _ListRef


class _Question(msgspec.Struct):
    """How good was this list, now that the next item (``target``, an item_index) is known?"""

    model: Model
    listed: int | _Stored
    target: int
    late: bool


@dataclass(slots=True)
class Plan:
    """A batch before the models have run.

    holes: ranges of offsets, by partition, that no record was delivered for. touched: the sessions
    of the batch. transaction, counts: what is known so far; ``finish`` completes them.
    """

    lookup: Lookup
    transaction: Transaction = field(default_factory=Transaction)
    counts: BatchCounts = field(default_factory=BatchCounts)
    holes: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    touched: dict[int, set[bytes]] = field(default_factory=dict)
    waves: defaultdict[Model, Waves] = field(default_factory=lambda: defaultdict(Waves))
    answers: list[_Answer] = field(default_factory=list)
    questions: list[_Question] = field(default_factory=list)
    sessions: dict[tuple[int, bytes], _Session] = field(default_factory=dict)

    def score(self) -> dict[Model, Scores]:
        """Run the models. Blocks; the interpreter's lock is released inside ONNX Runtime."""
        return {model: waves.score(model.scorer) for model, waves in self.waves.items()}


class Planner:
    """Plans and finishes batches of one clicks topic; keeps nothing between them."""

    def __init__(self, models: Models, rules: Rules, topic: str) -> None:
        self.rules = rules
        self.topic = topic
        self._models = models

    def plan(
        self,
        records: Mapping[int, Sequence[Record]],
        positions: Mapping[int, Position],
        lookup: Lookup,
    ) -> Plan:
        """Return the plan of one micro-batch: every record parsed, every session resumed.

        records: by partition, in order of offset. positions: of each of these partitions; they are
        copied, not changed. Raises BadClickLimitError; nothing has been done then.
        """
        plan, limit, parse = Plan(lookup), self.rules.limit, self._models.parse
        for partition, of_partition in records.items():
            position = plan.transaction.positions[partition] = positions[partition].copy()
            touched = plan.touched[partition] = set()
            for record in of_partition:
                if record.offset < position.next_offset:
                    plan.counts.skipped += 1
                    continue
                if record.offset > position.next_offset:
                    hole = (position.next_offset, record.offset)
                    plan.holes.setdefault(partition, []).append(hole)
                position.next_offset = record.offset + 1
                click = parse(record)
                if isinstance(click, BadClick):
                    limit.count_bad(position, self.topic, partition, record.offset)
                    plan.counts.rejected.append((record, click.reason))
                    plan.transaction.messages[Target.DEAD_LETTERS][partition].append(
                        dead_letter(self.topic, record, click)
                    )
                else:
                    limit.count_good(position)
                    touched.add(click.session)
                    self._plan_click(plan, record, click, position.watermark_ms)
                    position.watermark_ms = max(position.watermark_ms, click.timestamp_ms)
        return plan

    def _plan_click(self, plan: Plan, record: Record, click: Click, watermark_ms: int) -> None:
        model = self._models.of(click.session)
        session = self._resume(plan, model, record.partition, click, watermark_ms)
        if not model.reads(click.event_type):
            listed = session.current if session else None
            plan.answers.append(_Answer(record, click, model, Outcome.OTHER_EVENT, listed))
            return
        if session is None:
            session = self._begin(plan, model, record.partition, click)
        before = session.current
        if _is_repeated(click, session.trail):
            plan.answers.append(_Answer(record, click, model, Outcome.DUPLICATE, before))
            return
        index = model.item_index.get(click.item_id)
        late = click.timestamp_ms < session.last_click_ms
        plan.counts.late += late
        session.changed = True
        session.n_clicks += 1
        session.trail.append(
            TrailClick(click.item_id, click.timestamp_ms, click.event_hash, click.context)
        )
        del session.trail[:-TRAIL_CLICKS]
        if index is None:
            last = session.last_outcome = (
                LastOutcome.FALLBACK if before is None else LastOutcome.UNKNOWN_ITEM
            )
            plan.answers.append(_Answer(record, click, model, Outcome[last.name], before))
            return
        if session.last_outcome is LastOutcome.MODEL:
            assert before is not None, "only a list of the model is judged"
            plan.questions.append(_Question(model, before, index, late))
        session.last_outcome = LastOutcome.MODEL
        # Every known item leaves a list: a session without one is at its first.
        session.current = _step(session, index, click, is_first=before is None, ranked=True)
        plan.answers.append(_Answer(record, click, model, Outcome.MODEL, session.current))

    def _resume(
        self, plan: Plan, model: Model, partition: int, click: Click, watermark_ms: int
    ) -> _Session | None:
        """Return the click's live session, rebuilt if need be; None: there is none or it ended."""
        name = (partition, click.session)
        past: _Session | SessionState | None = plan.sessions.get(name)
        if past is None and (raw := plan.lookup(*name)) is not None:
            past = decode_state(raw)
        # The order of the rules makes the outcome a function of the log alone, whether or not
        # expiry has collected the session: first what the watermark calls dead, then a repeated
        # event (whatever its timestamp), then the click's own gap.
        if (
            past is None
            or self.rules.is_dead(past.last_click_ms, watermark_ms)
            or (
                self.rules.is_past_gap(past.last_click_ms, click.timestamp_ms)
                and not _is_repeated(click, past.trail)
            )
        ):
            return None
        if isinstance(past, SessionState):
            past = plan.sessions[name] = _from_state(plan, model, past)
        return past

    def _begin(self, plan: Plan, model: Model, partition: int, click: Click) -> _Session:
        """Return a new session, in the place of one that ended if there was one."""
        name = (partition, click.session)
        plan.counts.expired += name in plan.sessions or plan.lookup(*name) is not None
        waves, fallback = plan.waves[model], LastOutcome.FALLBACK
        row = waves.add_session(None)
        plan.sessions[name] = _Session(model, waves, row, click.timestamp_ms, 0, fallback, [], None)
        return plan.sessions[name]

    def advance(self, plan: Plan, scores: Mapping[Model, Scores]) -> None:
        """Complete the plan's changelog with what the models have computed."""
        for (partition, key), session in plan.sessions.items():
            if session.changed:
                state = _state_of(session, scores[session.model])
                plan.transaction.changelog[partition][key] = encode_state(state)

    def answer(self, plan: Plan, scores: Mapping[Model, Scores], published_ms: int) -> None:
        """Complete the plan's messages and counts."""
        lists = {m: (s.top_index.tolist(), s.top_score.tolist()) for m, s in scores.items()}
        models = {answer.model for answer in plan.answers}
        popular = {model: [Item(*entry) for entry in model.popular] for model in models}

        def list_of(model: Model, listed: int | _Stored) -> tuple[list[int], list[float]]:
            if isinstance(listed, int):
                top_index, top_score = lists[model]
                return top_index[listed], top_score[listed]
            return listed.top_index.tolist(), listed.top_score.tolist()

        def items_of(model: Model, listed: _ListRef) -> list[Item]:
            if listed is None:
                return popular[model]
            item_ids = model.item_ids
            pairs = zip(*list_of(model, listed), strict=True)
            return [Item(item_ids[index], score) for index, score in pairs]

        recommendations = plan.transaction.messages[Target.RECOMMENDATIONS]
        for answer in plan.answers:
            record, click, outcome = answer.record, answer.click, answer.outcome
            model_id, items = answer.model.model_id, items_of(answer.model, answer.listed)
            recommendations[record.partition].append(
                recommendation(self.topic, record, click, items, model_id, outcome, published_ms)
            )
            plan.counts.answered.append(Answered(record, click.timestamp_ms, model_id, outcome))
        for question in plan.questions:
            rank = rank_in_list(*list_of(question.model, question.listed), question.target)
            plan.counts.judgements.append(Judgement(question.late, rank))


def _is_repeated(click: Click, trail: Sequence[TrailClick]) -> bool:
    return click.event_hash != 0 and any(c.event_hash == click.event_hash for c in trail)


def _from_state(plan: Plan, model: Model, state: SessionState) -> _Session:
    """Return a stored session; under another model than the stored one, rebuilt from its trail."""
    waves, same_model = plan.waves[model], state.bundle_id == model.model_id
    session = _Session(
        model,
        waves,
        waves.add_session(state.model_state if same_model else None),
        state.last_click_ms,
        state.n_clicks,
        state.last_outcome,
        list(state.trail),
        _Stored(state.top_index, state.top_score) if state.top_index.size else None,
    )
    if same_model:
        return session
    # Another model made the state and the list: run the trail through this one. Its list was never
    # published, so the next click does not judge it. The time of the last click is that of the
    # last item known to this model, as if it had served the session from the beginning.
    item_index = model.item_index
    known = [(item_index[c.item_id], c) for c in session.trail if c.item_id in item_index]
    session.last_click_ms = session.trail[0].timestamp_ms
    session.current = None
    for n, (index, click) in enumerate(known, start=1):
        session.current = _step(session, index, click, is_first=n == 1, ranked=n == len(known))
    session.last_outcome = LastOutcome.UNKNOWN_ITEM if known else LastOutcome.FALLBACK
    session.changed = True
    plan.counts.rebuilt += 1
    return session


def _step(
    session: _Session, index: int, click: Click | TrailClick, *, is_first: bool, ranked: bool
) -> int:
    """Advance a session by a known item; returns the row of its list, or -1 if not ``ranked``."""
    gap_ms = None if is_first else click.timestamp_ms - session.last_click_ms
    session.last_click_ms = max(session.last_click_ms, click.timestamp_ms)
    context = session.model.context.indices(click.context, click.timestamp_ms, gap_ms)
    return session.waves.step(session.row, index, context, ranked=ranked)


def _state_of(session: _Session, scores: Scores) -> SessionState:
    listed = session.current
    if listed is None:
        listed = _Stored(np.empty(0, np.int32), np.empty(0, np.float32))
    elif isinstance(listed, int):
        listed = _Stored(scores.top_index[listed], scores.top_score[listed])
    return SessionState(
        session.model.model_id,
        session.last_click_ms,
        session.n_clicks,
        session.last_outcome,
        tuple(session.trail),
        scores.state[session.row],
        listed.top_index,
        listed.top_score,
    )
