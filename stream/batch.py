"""The heart: clicks and states in, what to publish and what to persist out.

Pure and synchronous; no clock and no Kafka. Four steps, of which only the middle one may need a
thread: ``Planner.plan`` parses clicks and resumes sessions, ``Plan.score`` runs the models, and
``Planner.advance`` writes the states, which the next batch is planned on, and ``Planner.answer``
the answers.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np

from stream.contract.click import TRAIL_CLICKS, Click
from stream.contract.messages import Outcome, Target, item_events, recommendation
from stream.contract.records import Record
from stream.counts import QUALITY_K, Answered, Judgement
from stream.intake import Intake, Lookup, Taken
from stream.lists import ListRef, Lists, LiveLists, NetworkLists, check_items
from stream.live.counts import CLICKED, steps
from stream.live.lists import Gathered, Listed
from stream.model.blender import Ask
from stream.model.bundle import Manifest
from stream.model.models import Model, Models
from stream.model.scorer import Scores, Waves
from stream.position import BadClickLimit, Position
from stream.quality import Parts, Sample, is_sampled
from stream.session import LastOutcome, PartitionSessions, Stored, Trail, TrailClick


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

    def is_dead(self, seen_ms: int, watermark_ms: int) -> bool:
        """Whether the log has gone on for so long since the session's last click that it ended."""
        return self.is_past_gap(seen_ms, watermark_ms - self.allowed_lateness_ms)

    def is_past_gap(self, last_click_ms: int, timestamp_ms: int) -> bool:
        """Whether a click comes too long after its session's last one to continue it."""
        idle_timeout_ms = self.idle_timeout_ms
        return idle_timeout_ms is not None and timestamp_ms - last_click_ms > idle_timeout_ms


GATHER_APART = 64
"""More lists than these are gathered in a thread of their own: the way there and back costs 1 to 2
ms where two cores are busy."""
_JUDGED = (LastOutcome.MODEL, LastOutcome.LIVE)
_LISTED = (Outcome.MODEL, Outcome.LIVE)


class _Session(msgspec.Struct):
    """One session while its clicks of this batch are planned. ``row``: its row in the waves."""

    model: Model
    waves: Waves
    row: int
    seen_ms: int
    last_click_ms: int
    n_clicks: int
    last_outcome: int
    trail: Trail
    current: ListRef
    changed: bool = False


class _Answer(NamedTuple):
    record: Record
    click: Click
    model: Model
    outcome: Outcome
    listed: ListRef


class _Question(NamedTuple):
    """How good was this list, now that the next click is known?"""

    model: Model
    listed: int | bytes
    click: Click
    late: bool


@dataclass(slots=True)
class Plan(Taken):
    """A batch before the models have run; ``Planner`` completes its transaction and counts.

    asks: the blended lists that are wanted. sampled: of those whose parts are judged, too, number
    and session. events: of items, as in ``ItemEvents``.
    """

    waves: defaultdict[Model, Waves] = field(default_factory=lambda: defaultdict(Waves))
    answers: list[_Answer] = field(default_factory=list)
    questions: list[_Question] = field(default_factory=list)
    asks: defaultdict[Model, list[Ask]] = field(default_factory=lambda: defaultdict(list))
    sampled: defaultdict[Model, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    parts: dict[Model, dict[int, Parts]] = field(default_factory=dict)
    events: list[tuple[str, str, int, int]] = field(default_factory=list)
    lists: dict[Model, Lists] = field(default_factory=dict)
    scores: dict[Model, Scores] = field(default_factory=dict)
    sessions: dict[tuple[int, bytes], _Session] = field(default_factory=dict)

    @property
    def models(self) -> set[Model]:
        """Those that have answered."""
        return {answer.model for answer in self.answers}


class Planner:
    """Plans and finishes batches of one clicks topic; keeps no session between them.

    n_item_partitions: of the item-events topic, if clicks are to be learnt from.
    """

    def __init__(
        self, models: Models, rules: Rules, topic: str, n_item_partitions: int | None = None
    ) -> None:
        self.rules = rules
        self._n_item_partitions = n_item_partitions
        self.intake = Intake(topic, models.parse, rules.limit)
        self._models = models
        self._sample = Sample()
        self._gathering = ThreadPoolExecutor(1, thread_name_prefix="gathering")

    def new_partition(self) -> PartitionSessions:
        """Return an empty table."""
        return PartitionSessions()

    def refresh(self) -> None:
        """Let the models take what has come from elsewhere; between two batches."""
        self._models.refresh()

    def plan(
        self,
        records: Mapping[int, Sequence[Record]],
        positions: Mapping[int, Position],
        lookup: Lookup,
    ) -> Plan:
        """Return the plan of one micro-batch: every record parsed, every session resumed.

        Arguments and errors as in ``Intake.take``.
        """
        plan = Plan(lookup)
        for record, click, position in self.intake.take(plan, records, positions):
            plan.touched[record.partition].add(click.session)
            self._plan_click(plan, record, click, position.watermark_ms)
            position.watermark_ms = max(position.watermark_ms, click.timestamp_ms)
        return plan

    def _plan_click(self, plan: Plan, record: Record, click: Click, watermark_ms: int) -> None:
        model = self._models.of(click.session)
        plan.counts.stale += self.rules.is_dead(click.timestamp_ms, watermark_ms)
        session = self._resume(plan, model, record.partition, click, watermark_ms)
        if not model.reads(click.event_type):
            listed = session.current if session else None
            plan.answers.append(_Answer(record, click, model, Outcome.OTHER_EVENT, listed))
            return
        if session is None:
            session = self._begin(plan, model, record.partition, click)
        before = session.current
        if session.trail.has(click.event_hash):
            plan.answers.append(_Answer(record, click, model, Outcome.DUPLICATE, before))
            return
        index = model.item_index.get(click.item_id)
        late = click.timestamp_ms < session.last_click_ms
        plan.counts.late += late
        plan.counts.unknown += index is None
        session.changed = True
        session.seen_ms = max(watermark_ms, click.timestamp_ms)
        session.n_clicks += 1
        blender = model.blender
        trail = session.trail.items() if blender else []
        if self._n_item_partitions:
            plan.events += _taught(trail, click, record.timestamp_ms)
        session.trail.add(click.item_id, click.timestamp_ms, click.event_hash, click.context)
        if index is None and blender:  # whatever the view knows: states are the log's alone
            session.last_click_ms = max(session.last_click_ms, click.timestamp_ms)
        if index is None and not (blender and blender.can_list()):
            last = session.last_outcome = (
                LastOutcome.FALLBACK if before is None else LastOutcome.UNKNOWN_ITEM
            )
            plan.answers.append(_Answer(record, click, model, Outcome[last.name], before))
            return
        if session.last_outcome in _JUDGED:
            assert before is not None, "only a list that was made is judged"
            plan.questions.append(_Question(model, before, click, late))
        outcome, rank_row = Outcome.LIVE, -1
        if index is not None:
            # Every known item leaves a list: a session without one is at its first.
            is_first = not any(i in model.item_index for i in trail) if blender else before is None
            outcome = Outcome.MODEL
            rank_row = _step(session, index, click, is_first=is_first, ranked=True)
        session.last_outcome = LastOutcome[outcome.name]
        session.current = rank_row
        if blender:
            items = [*trail[1 - TRAIL_CLICKS :], click.item_id]
            number = session.current = _ask(plan, session, items, click.timestamp_ms, rank_row)
            if is_sampled(click.session):
                plan.sampled[model][number] = click.session
        plan.answers.append(_Answer(record, click, model, outcome, session.current))

    def _resume(
        self, plan: Plan, model: Model, partition: int, click: Click, watermark_ms: int
    ) -> _Session | None:
        """Return the click's live session, rebuilt if need be; None: there is none or it ended."""
        name = (partition, click.session)
        past: _Session | Stored | None = plan.sessions.get(name)
        if past is None and (raw := plan.lookup(*name)) is not None:
            past = Stored.decode(raw)
        # The order of the rules makes the outcome a function of the log alone, whether or not
        # expiry has collected the session: first what the watermark calls dead, then a repeated
        # event (whatever its timestamp), then the click's own gap. The first looks at no click's
        # own time: a producer whose clock is slow, or whose clicks waited somewhere, has sessions
        # like any other.
        if (
            past is None
            or self.rules.is_dead(past.seen_ms, watermark_ms)
            or (
                self.rules.is_past_gap(past.last_click_ms, click.timestamp_ms)
                and not past.trail.has(click.event_hash)
            )
        ):
            return None
        if isinstance(past, Stored):
            past = plan.sessions[name] = _from_state(plan, model, past)
        return past

    def _begin(self, plan: Plan, model: Model, partition: int, click: Click) -> _Session:
        """Return a new session, in the place of one that ended if there was one."""
        name = (partition, click.session)
        plan.counts.begun += 1
        plan.counts.expired += name in plan.sessions or plan.lookup(*name) is not None
        waves, fallback = plan.waves[model], LastOutcome.FALLBACK
        row = waves.add_session(None)
        at_ms = click.timestamp_ms
        begun = _Session(model, waves, row, at_ms, at_ms, 0, fallback, Trail(), None)
        plan.sessions[name] = begun
        return begun

    def score(self, plan: Plan) -> None:
        """Run the models, and make the lists of both them and the view.

        Blocks; the interpreter's lock is released inside ONNX Runtime.
        """
        biases = {model: model.blender.bias() if model.blender else None for model in plan.waves}
        gathered = {model: self._gather(model, asks) for model, asks in plan.asks.items()}
        try:
            for model, waves in plan.waves.items():
                plan.scores[model] = waves.score(model.scorer, biases[model])
        finally:
            wait(gathered.values())  # where a model fails, the batch is planned anew, in parts
        plan.counts.encode_seconds = sum(s.encode_seconds for s in plan.scores.values())
        plan.counts.rank_seconds = sum(s.rank_seconds for s in plan.scores.values())
        for model in plan.models:
            scores = plan.scores.get(model)
            if scores:
                check_items(len(model.item_ids), scores)
            if model.blender is None:
                plan.lists[model] = NetworkLists(model, scores)
            else:
                asks, made = plan.asks[model], list[Listed]()
                if scores and asks:
                    made = model.blender.make(gathered[model].result(), scores)
                plan.lists[model] = LiveLists(model, model.blender, made)
                if scores and (sampled := plan.sampled[model]):
                    plan.parts[model] = self._sample.make(
                        sampled, model.blender, asks, scores, made
                    )

    def _gather(self, model: Model, asks: Sequence[Ask]) -> "Future[Gathered]":
        """Look up what the view has for lists, many in a thread beside the network's work.

        Nothing else may use the view until it is done.
        """
        assert model.blender is not None, "without one no blended list is wanted"
        if len(asks) > GATHER_APART:
            return self._gathering.submit(model.blender.gather, asks)
        found: Future[Gathered] = Future()
        found.set_result(model.blender.gather(asks))
        return found

    def is_dead(self, seen_ms: int, watermark_ms: int) -> bool:
        """Whether a state of that time has expired."""
        return self.rules.is_dead(seen_ms, watermark_ms)

    def expire(self, plan: Plan, partition: int, keys: Sequence[bytes]) -> None:
        """Let the batch's transaction delete expired sessions."""
        plan.transaction.changelog[partition].update(dict.fromkeys(keys))
        plan.counts.expired += len(keys)

    def advance(self, plan: Plan) -> None:
        """Complete the plan's changelog with what the models have computed."""
        made = {
            model: _States(model, of_model, plan.lists[model])
            for model, of_model in plan.scores.items()
        }
        changelog = plan.transaction.changelog
        for (partition, key), session in plan.sessions.items():
            if session.changed:
                changelog[partition][key] = made[session.model].encode(session)

    def answer(self, plan: Plan, published_ms: int) -> None:
        """Complete the plan's messages and counts."""
        messages, lists = plan.transaction.messages, plan.lists
        recommendations = messages[Target.RECOMMENDATIONS]
        topic = self.intake.topic
        for record, click, model, outcome, listed in plan.answers:
            items = lists[model].items(listed)
            if outcome in _LISTED and lists[model].is_popular(listed, items):
                plan.counts.no_scores += outcome == Outcome.MODEL
                outcome = Outcome.FALLBACK
            blender = model.blender
            view_ms = blender.view.as_of_ms if blender else None
            recommendations[record.partition].append(
                recommendation(
                    topic, record, click, items, model.model_id, outcome, published_ms, view_ms
                )
            )
            answered = Answered(record, click.timestamp_ms, model.model_id, outcome)
            plan.counts.answered.append(answered)
        for of_model in lists.values():
            plan.counts.listed.update(of_model.sources())
        for model, listed, click, late in plan.questions:
            rank, source = lists[model].find(listed, click.item_id)
            plan.counts.judgements.append(Judgement(late, rank))
            if source is not None:
                plan.counts.hits[source] += rank <= QUALITY_K
            if model.blender is not None and not late:
                made = plan.parts.get(model, {})
                if ranks := self._sample.ranks(made, click.session, listed, click.item_id):
                    plan.counts.parts.append((rank, *ranks))
        for model, made in plan.parts.items():
            self._sample.keep(plan.sampled[model], made, lists[model].stored)
        if plan.events and self._n_item_partitions:
            # With any partition of the batch: they are all of one transaction.
            partition = next(iter(plan.transaction.positions))
            told = item_events(plan.events, self._n_item_partitions)
            messages[Target.ITEM_EVENTS][partition] += told


class _States:
    """Encodes the states of one model's sessions: its arrays as bytes, of which each has a part."""

    def __init__(self, model: Model, scores: Scores, lists: Lists) -> None:
        self._bundle, self._lists = model.model_bytes, lists
        self._state, self._state_bytes = scores.state.tobytes(), 4 * scores.state.shape[1]
        self._is_live = model.blender is not None

    def encode(self, session: _Session) -> bytes:
        state_at = session.row * self._state_bytes
        return Stored(
            self._bundle,
            session.seen_ms,
            session.last_click_ms,
            session.n_clicks,
            session.last_outcome,
            session.trail,
            self._state[state_at : state_at + self._state_bytes],
            self._lists.stored(session.current),
            self._is_live,
        ).encode()


def _from_state(plan: Plan, model: Model, stored: Stored) -> _Session:
    """Return a stored session; under another model than the stored one, rebuilt from its trail."""
    waves, same_model = plan.waves[model], stored.bundle == model.model_bytes
    session = _Session(
        model,
        waves,
        waves.add_session(np.frombuffer(stored.model_state, np.float32) if same_model else None),
        stored.seen_ms,
        stored.last_click_ms,
        stored.n_clicks,
        stored.last_outcome,
        stored.trail,
        stored.listed or None,
    )
    if same_model:
        return session
    # Another model made the state and the list: run the trail through this one. Its list was never
    # published, so the next click does not judge it. The time of the last click is that of the
    # last item known to this model, as if it had served the session from the beginning.
    item_index, trail = model.item_index, session.trail.clicks()
    known = [(item_index[c.item_id], c) for c in trail if c.item_id in item_index]
    session.last_click_ms = trail[0].timestamp_ms
    session.current = None
    rank_row = -1
    for n, (index, click) in enumerate(known, start=1):
        rank_row = _step(session, index, click, is_first=n == 1, ranked=n == len(known))
        session.current = rank_row
    if model.blender is not None:
        session.last_click_ms = max(click.timestamp_ms for click in trail)
        is_known = trail[-1].item_id in item_index
        session.current = None
        if is_known or model.blender.can_list():
            items = [click.item_id for click in trail]
            now_ms = trail[-1].timestamp_ms
            session.current = _ask(plan, session, items, now_ms, rank_row if is_known else -1)
    session.last_outcome = LastOutcome.UNKNOWN_ITEM if known else LastOutcome.FALLBACK
    session.changed = True
    plan.counts.rebuilt += 1
    return session


def _ask(plan: Plan, session: _Session, trail: list[str], now_ms: int, rank_row: int) -> int:
    """Want a blended list; returns its number among those of the model."""
    asks = plan.asks[session.model]
    asks.append(Ask(trail, session.n_clicks, now_ms, rank_row))
    return len(asks) - 1


def _step(
    session: _Session, index: int, click: Click | TrailClick, *, is_first: bool, ranked: bool
) -> int:
    """Advance a session by a known item; returns the row of its list, or -1 if not ``ranked``."""
    gap_ms = None if is_first else click.timestamp_ms - session.last_click_ms
    session.last_click_ms = max(session.last_click_ms, click.timestamp_ms)
    context = session.model.context.indices(click.context, click.timestamp_ms, gap_ms)
    return session.waves.step(session.row, index, context, ranked=ranked)


def _taught(
    trail: Sequence[str], click: Click, appended_ms: int
) -> list[tuple[str, str, int, int]]:
    """What a click teaches of items after those of the trail.

    Never later than it was appended: a producer whose clock is fast by five minutes would make an
    item's honest clicks old by as much, and hold its counts back until then.
    """
    item, at_ms = click.item_id, min(click.timestamp_ms, appended_ms)
    taught = [(item, item, CLICKED, at_ms)]
    taught += [(former, other, step, at_ms) for former, other, step in steps(trail, item)]
    return taught
