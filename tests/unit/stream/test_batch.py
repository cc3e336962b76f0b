"""The heart: laws of a batch over random logs, and the rules of a click by hand."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float32, Int32, Int64
from msgspec.structs import replace

from stream.batch import Plan, Rules
from stream.contract.click import Reason
from stream.contract.context import FIRST_VALUE, MISSING, UNKNOWN, Context, ContextField
from stream.contract.messages import Target
from stream.contract.records import Message, Record
from stream.counts import Judgement
from stream.position import BadClickLimit, BadClickLimitError
from stream.session import (
    LastOutcome,
    SessionState,
    TrailClick,
    decode_state,
    encode_state,
    seen_ms,
)
from tests.unit.stream.replay import BEGIN_MS, RECORD_MS, FakeScorer, Replay, bundle_of

IDLE_MS, LATENESS_MS = 1000, 500
NEVER = Rules(None, 0, BadClickLimit(1000, 0.5))
EXPIRING = Rules(IDLE_MS, LATENESS_MS, BadClickLimit(1000, 0.5))

# -- random logs ------------------------------------------------------------------------------

ITEMS = ["a", "b", "c", "d", "e", "f", "g"]
CONTEXT = (
    ContextField("event_type", "column", ("view", "cart")),
    ContextField("device", "column", ("tv", "3")),
    ContextField("gap", "gap", edges_s=(0.0, 0.03, 0.3, 1.0)),
)
BUNDLE = bundle_of(ITEMS, n_recommendations=3, context=CONTEXT)
# Scores of few values, so that the lists hold ties.
SCORER = FakeScorer(np.random.default_rng(4).integers(0, 4, (len(ITEMS), len(ITEMS))), 3, 0.5, 1.0)


@dataclass(frozen=True)
class Spec:
    """A record before it has its offset: how far time goes on or back, and whether it is bad."""

    session_id: str
    item_id: str
    step_ms: int
    event_id: str | None
    event_type: str | None
    device: object
    bad: bool
    hole: int

    @property
    def partition(self) -> int:
        return ord(self.session_id) % 2


specs = st.builds(
    Spec,
    session_id=st.sampled_from("stuvw"),
    item_id=st.sampled_from([*ITEMS, "unknown", "new"]),
    # Small steps, late clicks, stale ones, gaps about the idle timeout, and some that end all.
    step_ms=st.sampled_from([0, 1, 30, 300, -1, -300, -1400, -2600, 999, 1000, 1001, 1501, 2600]),
    event_id=st.sampled_from([None, None, "e1", "e2", "e3"]),
    event_type=st.sampled_from([None, "view", "cart", "purchase"]),
    device=st.sampled_from([None, "tv", 3, 3.0, True, [], "x" * 65]),
    bad=st.sampled_from([False] * 7 + [True]),
    hole=st.sampled_from([0] * 9 + [2]),
)
logs = st.lists(specs, max_size=40).map(lambda made: records_of(made))


def records_of(made: Sequence[Spec]) -> list[Record]:
    offsets, now_ms, records = {0: 0, 1: 0}, 5000, []
    for spec in made:
        now_ms = max(0, now_ms + spec.step_ms)
        offset = offsets[spec.partition] + spec.hole
        offsets[spec.partition] = offset + 1
        made_click = click(
            spec.session_id,
            spec.item_id,
            now_ms,
            offset,
            spec.event_id,
            event_type=spec.event_type,
            device=spec.device,
        )
        records.append(
            replace(
                made_click, partition=spec.partition, value=b"{}" if spec.bad else made_click.value
            )
        )
    return records


def click(
    session_id: str,
    item_id: str,
    after_ms: int,
    offset: int,
    event_id: str | None = None,
    **context: object,
) -> Record:
    """A click so long after BEGIN_MS."""
    at_ms = BEGIN_MS + after_ms
    fields = {"session_id": session_id, "item_id": item_id, "timestamp_ms": at_ms, **context}
    if event_id is not None:
        fields["event_id"] = event_id
    return Record(0, offset, RECORD_MS, session_id.encode(), json.dumps(fields).encode())


@st.composite
def logs_and_splits(draw: st.DrawFn) -> tuple[list[Record], list[list[Record]]]:
    """A log, and the same log cut into batches anywhere."""
    log = draw(logs)
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(log) - 1)), max_size=10)))
    return log, [log[a:b] for a, b in zip([0, *cuts], [*cuts, len(log)], strict=True)]


def counts(outputs: Sequence[Plan]) -> dict[str, Any]:
    """What does not depend on how the log was cut."""
    return {
        "late": sum(o.counts.late for o in outputs),
        "stale": sum(o.counts.stale for o in outputs),
        "begun": sum(o.counts.begun for o in outputs),
        "judgements": sorted(j for o in outputs for j in o.counts.judgements),
        "holes": sorted((p, hole) for o in outputs for p in o.holes for hole in o.holes[p]),
        "outcomes": sorted(
            (a.record.partition, a.record.offset, a.outcome)
            for o in outputs
            for a in o.counts.answered
        ),
        "reasons": sorted(
            (r.partition, r.offset, reason) for o in outputs for r, reason in o.counts.rejected
        ),
    }


def living(replay: Replay) -> dict[tuple[int, bytes], bytes]:
    """The states that a later click can still find."""
    return {
        (p, key): raw
        for p, of_partition in replay.sessions.partitions.items()
        for key, raw in of_partition.states.items()
        if not replay.rules.is_dead(seen_ms(raw), replay.positions[p].watermark_ms)
    }


def sources(messages: dict[int, list[Message]]) -> dict[int, list[Message]]:
    """Recommendations and dead letters by the offset that they answer."""
    return {p: sorted(m, key=lambda message: repr(message.headers)) for p, m in messages.items()}


def assert_same(ours: Replay, theirs: Replay) -> None:
    assert sources(ours.messages) == sources(theirs.messages)
    assert ours.positions == theirs.positions
    assert living(ours) == living(theirs)
    assert counts(ours.outputs) == counts(theirs.outputs)


@given(logs_and_splits(), st.booleans(), st.booleans())
def test_a_log_gives_the_same_from_any_split_and_whether_or_not_expiry_collects(
    log: tuple[list[Record], list[list[Record]]], collect_whole: bool, collect_split: bool
) -> None:
    records, batches = log
    whole = Replay(BUNDLE, SCORER, EXPIRING, collect_whole).run([records])
    split = Replay(BUNDLE, SCORER, EXPIRING, collect_split).run(batches)
    assert_same(whole, split)


@given(logs)
def test_sessions_in_one_batch_equal_one_by_one(records: list[Record]) -> None:
    together = Replay(BUNDLE, SCORER, EXPIRING, collect=False).run([records])
    one_by_one = Replay(BUNDLE, SCORER, EXPIRING, collect=True).run([r] for r in records)
    assert_same(together, one_by_one)


@given(logs_and_splits())
def test_a_log_delivered_twice_says_nothing_the_second_time(
    log: tuple[list[Record], list[list[Record]]],
) -> None:
    records, batches = log
    once = Replay(BUNDLE, SCORER, EXPIRING).run(batches)
    twice = Replay(BUNDLE, SCORER, EXPIRING).run(batches).run(batches)
    assert twice.messages == once.messages
    assert twice.positions == once.positions
    assert living(twice) == living(once)
    assert sum(o.counts.skipped for o in twice.outputs) == len(records)


@given(logs)
def test_every_record_is_answered_once_or_rejected_once(records: list[Record]) -> None:
    replay = Replay(BUNDLE, SCORER, EXPIRING).run([records])
    answered = [
        (a.record.partition, a.record.offset) for o in replay.outputs for a in o.counts.answered
    ]
    rejected = [(r.partition, r.offset) for o in replay.outputs for r, _ in o.counts.rejected]
    assert sorted(answered + rejected) == sorted((r.partition, r.offset) for r in records)
    assert sum(map(len, replay.messages.values())) == len(records)


# -- types of event that advance a session ------------------------------------------------------

TYPED = bundle_of(ITEMS, n_recommendations=3, context=CONTEXT, event_types=("view", "cart"))


def unseen(replay: Replay) -> dict[tuple[int, bytes], bytes]:
    """The states but for when the log saw them."""
    return {
        name: encode_state(replace(decode_state(raw), seen_ms=0))
        for name, raw in living(replay).items()
    }


def is_read(record: Record) -> bool:
    return record.value == b"{}" or json.loads(record.value or b"")["event_type"] in (
        "view",
        "cart",
    )


@given(logs_and_splits(), st.booleans())
def test_other_events_give_the_same_from_any_split(
    log: tuple[list[Record], list[list[Record]]], collect: bool
) -> None:
    records, batches = log
    whole = Replay(TYPED, SCORER, EXPIRING, collect).run([records])
    split = Replay(TYPED, SCORER, EXPIRING, not collect).run(batches)
    assert_same(whole, split)


@given(logs)
def test_sessions_go_on_as_if_other_events_had_never_been(records: list[Record]) -> None:
    every = Replay(TYPED, SCORER, NEVER).run([records])
    read = [r for r in records if is_read(r)]
    alone = Replay(BUNDLE, SCORER, NEVER).run([read])
    assert set(lists_of(every, read)) == set(lists_of(alone, read))
    assert unseen(every) == unseen(alone)  # they move the watermark
    others = [a for a in every.outputs[0].counts.answered if not is_read(a.record)]
    assert {a.outcome for a in others} <= {"other_event"}
    assert len(others) == len(records) - len(read)


def test_another_event_gets_the_last_list_again_and_changes_nothing() -> None:
    bundle = bundle_of(HAND_ITEMS, n_recommendations=3, event_types=("view",))
    replay = Replay(bundle, HAND_SCORER, EXPIRING)
    output = replay.step([click("s", "b", 90, 0, event_type="cart")])
    assert published(output) == [("other_event", POPULARITY)]
    assert replay.sessions.get(0, b"s") is None, "no session begins"
    output = replay.step([click("s", "a", 100, 1, "e1", event_type="view")])
    assert published(output) == [("model", AFTER_A)]
    before = replay.sessions.get(0, b"s")
    log = [
        click("s", "b", 110, 2, event_type="cart"),
        click("s", "b", 120, 3),  # of no type at all
        click("s", "unknown", 130, 4, event_type=""),
        click("s", "a", 100, 5, "e1", event_type="cart"),
        click("s", "b", 50, 6, event_type="cart"),
    ]
    output = replay.step(log)
    assert published(output) == [("other_event", AFTER_A)] * 5
    assert replay.sessions.get(0, b"s") == before
    assert (output.counts.late, output.counts.judgements, output.counts.expired) == (0, [], 0)
    # Too long after the last click: nobody's list, but the session itself may still go on.
    output = replay.step([click("s", "b", 101 + IDLE_MS, 7, event_type="cart")])
    assert published(output) == [("other_event", POPULARITY)]
    output = replay.step([click("s", "b", 140, 8, event_type="view")])
    assert (published(output), output.counts.judgements) == ([("model", AFTER_B)], [(False, 1)])
    assert state_of(replay).n_clicks == 2


# -- a swap of the bundle ---------------------------------------------------------------------

NEXT_ITEMS = ["new", "g", "e", "d", "a", "f", "unknown"]  # b and c are gone, two are known now
NEXT_CONTEXT = (  # fewer columns, other values, other bins
    ContextField("gap", "gap", edges_s=(0.5,)),
    ContextField("device", "column", ("true", "tv", "phone")),
    ContextField("hour", "hour"),
)
NEXT = bundle_of(NEXT_ITEMS, n_recommendations=3, bundle_id="b" * 16, context=NEXT_CONTEXT)
NEXT_SCORER = FakeScorer(np.random.default_rng(5).integers(0, 4, (7, 7)), 3, 0.75, 1.0)


def cached(raw: bytes) -> tuple[Any, ...]:
    """What the trail alone decides."""
    state = decode_state(raw)
    arrays = (state.model_state, state.top_index, state.top_score)
    counted = (state.n_clicks, state.last_click_ms)
    return state.bundle_id, *counted, kept(state.trail), *(a.tobytes() for a in arrays)


def kept(trail: Sequence[TrailClick]) -> list[tuple[Any, ...]]:
    """A trail as the bundle NEXT sees it: the one before kept a column more of each click."""
    of_next = Context(NEXT.manifest.context)
    return [
        (c.item_id, c.timestamp_ms, c.event_hash, of_next.indices(c.context, 0, None))
        for c in trail
    ]


@given(logs, st.integers(0, 40), st.booleans())
def test_a_session_rebuilt_after_a_swap_equals_one_that_ran_under_the_new_bundle(
    records: list[Record], swap: int, one_by_one: bool
) -> None:
    after = [[r] for r in records[swap:]] if one_by_one else [records[swap:]]
    swapped = Replay(BUNDLE, SCORER, NEVER).run([records[:swap]])
    swapped.bundle, swapped.scorer, swapped.messages = NEXT, NEXT_SCORER, {}
    swapped.run(after)
    stayed = Replay(NEXT, NEXT_SCORER, NEVER).run([records[:swap]])
    stayed.messages = {}
    stayed.run(after)
    assert swapped.messages == stayed.messages
    for r in records[swap:]:
        key = r.key
        assert key is not None
        ours, theirs = swapped.sessions.get(r.partition, key), stayed.sessions.get(r.partition, key)
        if r.value != b"{}":
            assert ours is not None
            assert theirs is not None
            assert cached(ours) == cached(theirs)


def test_a_long_session_is_rebuilt_from_its_last_50_clicks() -> None:
    log = [click("s", ITEMS[i % 7], i, i) for i in range(60)]
    swapped = Replay(BUNDLE, SCORER, NEVER).run([log])
    swapped.bundle, swapped.scorer = NEXT, NEXT_SCORER
    swapped.step([click("s", "a", 60, 60)])
    short = Replay(NEXT, NEXT_SCORER, NEVER).run(
        [[replace(r, offset=r.offset - 10) for r in log[10:]]]
    )
    short.step([click("s", "a", 60, 50)])
    ours, theirs = state_of(swapped), state_of(short)
    assert ours.n_clicks == 61
    assert len(ours.trail) == 50
    assert ours.trail == theirs.trail
    assert ours.model_state.tobytes() == theirs.model_state.tobytes()


def test_only_the_next_click_of_a_session_rebuilds_it_and_is_not_judged_by_the_old_list() -> None:
    replay = Replay(BUNDLE, SCORER, NEVER).run([[click("s", "a", 0, 0), click("t", "a", 0, 1)]])
    replay.bundle, replay.scorer = NEXT, NEXT_SCORER
    first, second = (replay.step([click("s", "a", n, n + 1)]) for n in (1, 2))
    assert (first.counts.rebuilt, first.counts.judgements) == (1, [])
    assert (second.counts.rebuilt, len(second.counts.judgements)) == (0, 1)
    assert state_of(replay, b"t").bundle_id == BUNDLE.manifest.bundle_id


def test_a_repeated_event_after_a_swap_gets_the_new_models_list_and_rebuilds_once() -> None:
    log = [click("s", "a", 0, 0, "e"), click("s", "a", 0, 1, "e"), click("s", "a", 0, 2, "e")]
    replay = Replay(BUNDLE, SCORER, NEVER).run([log[:1]])
    replay.bundle, replay.scorer = NEXT, NEXT_SCORER
    outputs = [replay.step([r]) for r in log[1:]]
    assert [o.counts.rebuilt for o in outputs] == [1, 0]
    expected = Replay(NEXT, NEXT_SCORER, NEVER).run([log])
    assert answers(outputs[0]) == expected.messages[0][1:2]
    assert cached(replay.sessions.get(0, b"s") or b"") == cached(
        expected.sessions.get(0, b"s") or b""
    )


# -- context ------------------------------------------------------------------------------------


class Recorder(FakeScorer):
    """Keeps what each click was encoded with, by item."""

    def __init__(self, n_items: int) -> None:
        super().__init__(np.eye(n_items), n_candidates=1, memory=0.5, context_weight=1.0)
        self.seen: list[tuple[int, list[int]]] = []

    def encode(
        self,
        item_index: Int64[np.ndarray, "B"],
        context: Int32[np.ndarray, "B F"],
        state: Float32[np.ndarray, "B S"],
    ) -> tuple[Float32[np.ndarray, "B D"], Float32[np.ndarray, "B S"]]:
        self.seen += zip(item_index.tolist(), context.tolist(), strict=True)
        return super().encode(item_index, context, state)


def test_a_click_is_encoded_with_its_own_context_and_the_gap_before_it() -> None:
    scorer = Recorder(7)
    log = [
        click("s", "unknown", 1_000, 0, event_type="cart"),
        click("s", "a", 61_000, 1, event_type="view", device=3.0),  # the first known: no gap
        click("s", "unknown", 61_500, 2, device="tv"),
        click("s", "b", 61_250, 3, event_type="purchase"),  # 250 ms after a
        click("s", "c", 61_000, 4, device=[1]),  # late: a gap of 0
        click("s", "d", 61_250, 5, device=""),  # none since the latest click before
    ]
    Replay(BUNDLE, scorer, NEVER).run([log])
    gap_0, gap_300 = FIRST_VALUE, FIRST_VALUE + 2
    assert scorer.seen == [
        (0, [2, 3, MISSING]),
        (1, [UNKNOWN, MISSING, gap_300]),
        (2, [MISSING, UNKNOWN, gap_0]),
        (3, [MISSING, MISSING, gap_0]),
    ]


def test_a_rebuild_numbers_the_trail_as_the_new_bundle_does() -> None:
    log = [
        click("s", "a", 1_000, 0, event_type="cart", device="tv"),
        click("s", "b", 2_000, 1, device="phone", colour="red"),  # gone in the new catalogue
        click("s", "d", 2_400, 2, device=True, colour="red"),
        click("s", "new", 2_600, 3, event_type="view"),  # unknown in the old one
    ]
    replay = Replay(BUNDLE, SCORER, NEVER).run([log])
    scorer = Recorder(7)
    context = [*NEXT_CONTEXT[:2], ContextField("colour", "column", ("red",))]
    replay.bundle = bundle_of(NEXT_ITEMS, 1, bundle_id="c" * 16, context=context)
    replay.scorer = scorer
    replay.step([click("s", "g", 3_200, 4, colour="red")])
    short, long, red = FIRST_VALUE, FIRST_VALUE + 1, FIRST_VALUE
    assert scorer.seen == [
        (4, [MISSING, 3, MISSING]),
        (3, [long, 2, MISSING]),  # 1.4 s since a; the old bundle kept no colour
        (0, [short, MISSING, MISSING]),
        (1, [long, MISSING, red]),
    ]


@given(logs, st.integers(0, 39), st.sampled_from(["event_type", "device"]))
def test_no_list_depends_on_what_a_later_click_says(
    records: list[Record], at: int, column: str
) -> None:
    """The context of the click to come is not known when a list is made, so nothing peeks."""
    changed = records[:at]
    for r in records[at:]:
        said = json.loads(r.value or b"") | {column: "cart", "timestamp_ms": RECORD_MS}
        changed.append(replace(r, value=json.dumps(said).encode()))
    before, after = (
        lists_of(Replay(BUNDLE, SCORER, NEVER).run([log]), records[:at])
        for log in (records, changed)
    )
    assert before == after


def lists_of(replay: Replay, records: Sequence[Record]) -> list[bytes | None]:
    """What answers these records."""
    asked = {f"clicks-{r.partition}-{r.offset}".encode() for r in records}
    return [
        message.value
        for messages in replay.messages.values()
        for message in messages
        if dict(message.headers).get("source") in asked
    ]


def test_what_the_last_click_says_changes_its_own_list() -> None:
    """Else the law above would hold for a model without context."""
    lists = {
        published(Replay(BUNDLE, SCORER, NEVER).step([click("s", "a", 1, 0, event_type=said)]))[0][
            1
        ][0]
        for said in ("view", "cart", "purchase", None)
    }
    assert len(lists) > 1


# -- by hand ----------------------------------------------------------------------------------

# After item a the list is b, c, d with scores 3, 2, 2 (e has 2 as well, and is left out); after b
# it is d, c, a; after any other item a, b, c.
HAND_ITEMS = ["a", "b", "c", "d", "e"]
HAND = bundle_of(HAND_ITEMS, n_recommendations=3)
HAND_SCORER = FakeScorer(
    np.array([[0, 3, 2, 2, 2], [3, 0, 4, 5, 1], [9, 8, 7, 0, 0], [9, 8, 7, 0, 0], [9, 8, 7, 0, 0]]),
    n_candidates=3,
)
AFTER_A, AFTER_B = [("b", 3), ("c", 2), ("d", 2)], [("d", 5), ("c", 4), ("a", 3)]
POPULARITY = [("a", 0), ("b", -1), ("c", -2)]


def hand(rules: Rules = EXPIRING) -> Replay:
    return Replay(HAND, HAND_SCORER, rules)


def state_of(replay: Replay, key: bytes = b"s") -> SessionState:
    raw = replay.sessions.get(0, key)
    assert raw is not None
    return decode_state(raw)


def answers(output: Plan, partition: int = 0) -> list[Message]:
    return output.transaction.messages[Target.RECOMMENDATIONS][partition]


def letters(output: Plan) -> list[Message]:
    return output.transaction.messages[Target.DEAD_LETTERS][0]


def published(output: Plan) -> list[tuple[str, list[tuple[str, float]]]]:
    values = [json.loads(m.value or b"") for m in answers(output)]
    return [(v["outcome"], [(i["item_id"], i["score"]) for i in v["items"]]) for v in values]


def test_a_model_list_is_published_for_a_known_item() -> None:
    replay = hand()
    output = replay.step([click("s", "a", 100, 0)])
    (message,) = answers(output)
    assert message.key == b"s"
    assert message.headers == (("source", b"clicks-0-0"),)
    assert json.loads(message.value or b"") == {
        "session_id": "s",
        "items": [{"item_id": i, "score": s} for i, s in AFTER_A],
        "model": "a" * 16,
        "outcome": "model",
        "click": {"item_id": "a", "timestamp_ms": BEGIN_MS + 100},
        "published_ms": 77,
    }
    state = state_of(replay)
    assert (state.n_clicks, state.last_outcome) == (1, LastOutcome.MODEL)
    assert state.seen_ms == state.last_click_ms == BEGIN_MS + 100
    assert state.trail == (TrailClick("a", BEGIN_MS + 100, 0),)
    assert state.top_index.tolist() == [1, 2, 3]


# -- numbers that are none ------------------------------------------------------------------------


class Failing(FakeScorer):
    """After item d the state is NaN; after a, b or c some score is NaN or infinite."""

    def __init__(self) -> None:
        scores = np.ones((len(ITEMS), len(ITEMS)), np.float32)
        scores[0], scores[1, 2], scores[2, 5] = np.nan, np.inf, np.nan
        super().__init__(scores, 3)

    def encode(
        self,
        item_index: Int64[np.ndarray, "B"],
        context: Int32[np.ndarray, "B F"],
        state: Float32[np.ndarray, "B S"],
    ) -> tuple[Float32[np.ndarray, "B D"], Float32[np.ndarray, "B S"]]:
        assert np.isfinite(state).all()
        query, after = super().encode(item_index, context, state)
        after[item_index == 3] = [np.nan, 0.0]
        return query, after


@given(logs_and_splits())
def test_numbers_that_are_none_are_never_published_and_hold_up_no_session(
    log: tuple[list[Record], list[list[Record]]],
) -> None:
    records, batches = log
    bundle, scorer = bundle_of(ITEMS, n_recommendations=3), Failing()
    whole = Replay(bundle, scorer, EXPIRING).run([records])
    split = Replay(bundle, scorer, EXPIRING).run(batches)
    assert_same(whole, split)
    values = [m.value for messages in whole.messages.values() for m in messages]
    assert not any(b"null" in (value or b"") for value in values)


def test_a_list_without_scores_is_answered_as_one_that_the_model_does_not_have() -> None:
    scores = HAND_SCORER.scores.copy()
    scores[0] = np.nan
    replay = Replay(HAND, FakeScorer(scores, 3), EXPIRING)
    log = [click("s", "a", 100, 0, "e1"), click("s", "a", 100, 1, "e1"), click("t", "b", 100, 2)]
    output = replay.step(log)
    assert published(output) == [
        ("fallback", POPULARITY),
        ("duplicate", POPULARITY),
        ("model", AFTER_B),
    ]
    assert output.counts.no_scores == 1
    output = replay.step([click("s", "b", 110, 3), click("t", "d", 110, 4)])
    assert [outcome for outcome, _ in published(output)] == ["model", "model"]
    assert output.counts.judgements == [(False, 0), (False, 1)]


def test_a_state_of_no_numbers_in_the_changelog_begins_anew() -> None:
    bundle, scorer = bundle_of(ITEMS, n_recommendations=3), FakeScorer(SCORER.scores, 3, memory=0.5)
    replay, fresh = (Replay(bundle, scorer, NEVER) for _ in range(2))
    replay.step([click("s", "c", 100, 0)])
    state = replace(state_of(replay), model_state=np.full(2, np.nan, np.float32))
    replay.partition(0).states[b"s"] = encode_state(state)
    ours, theirs = (r.step([click("s", "a", 110, 1)]) for r in (replay, fresh))
    assert answers(ours) == answers(theirs)
    assert state_of(replay).model_state.tolist() == state_of(fresh).model_state.tolist()


def test_a_repeated_event_gets_the_last_list_again_and_advances_nothing() -> None:
    replay = hand()
    replay.step([click("s", "a", 100, 0, "e1"), click("s", "b", 110, 1)])
    before = replay.sessions.get(0, b"s")
    # Whatever its item and its timestamp, and however long after the last click.
    log = [
        click("s", "a", 100, 2, "e1"),
        click("s", "e", 50, 3, "e1"),
        click("s", "a", 110 + IDLE_MS + 1, 4, "e1"),
    ]
    output = replay.step(log)
    assert published(output) == [("duplicate", AFTER_B)] * 3
    assert replay.sessions.get(0, b"s") == before
    assert (output.counts.late, output.counts.judgements, output.counts.expired) == (0, [], 0)


def test_an_event_repeated_in_its_own_batch_is_a_duplicate() -> None:
    output = hand().step([click("s", "a", 100, 0, "e1"), click("s", "a", 100, 1, "e1")])
    assert published(output) == [("model", AFTER_A), ("duplicate", AFTER_A)]


def test_a_repeated_item_without_an_event_id_or_with_a_new_one_advances() -> None:
    replay = hand()
    log = [click("s", "a", 1, 0), click("s", "a", 1, 1), click("s", "a", 1, 2, "e1")]
    output = replay.step([*log, click("s", "a", 1, 3, "e2")])
    assert [outcome for outcome, _ in published(output)] == ["model"] * 4
    assert state_of(replay).n_clicks == 4


def test_an_event_that_has_left_the_trail_is_new_again() -> None:
    replay = hand()
    log = [click("s", "a", 0, 0, "e")] + [click("s", "a", 1, n) for n in range(1, 50)]
    assert published(replay.step([*log, click("s", "a", 2, 50, "e")]))[-1][0] == "duplicate"
    replay.step([click("s", "a", 3, 51)])  # the 51st click that advances pushes e out
    assert published(replay.step([click("s", "a", 4, 52, "e")]))[-1][0] == "model"


def test_the_same_event_id_in_another_session_is_another_event() -> None:
    output = hand().step([click("s", "a", 1, 0, "e"), click("t", "a", 1, 1, "e")])
    assert [outcome for outcome, _ in published(output)] == ["model", "model"]


def test_an_unknown_item_gets_the_last_list_and_enters_the_trail_alone() -> None:
    replay = hand()
    replay.step([click("s", "a", 100, 0)])
    known = state_of(replay)
    output = replay.step([click("s", "unknown", 200, 1)])
    assert published(output) == [("unknown_item", AFTER_A)]
    state = state_of(replay)
    assert [c.item_id for c in state.trail] == ["a", "unknown"]
    assert (state.last_click_ms, state.n_clicks) == (BEGIN_MS + 100, 2)
    assert state.last_outcome is LastOutcome.UNKNOWN_ITEM
    assert state.model_state.tobytes() == known.model_state.tobytes()
    assert state.top_index.tolist() == known.top_index.tolist()


def test_a_session_that_begins_with_an_unknown_item_gets_popularity() -> None:
    replay = hand()
    output = replay.step([click("s", "unknown", 1, 0, "e"), click("s", "unknown", 1, 1, "e")])
    assert published(output) == [("fallback", POPULARITY), ("duplicate", POPULARITY)]
    assert state_of(replay).last_outcome is LastOutcome.FALLBACK
    output = replay.step([click("s", "other", 2, 2), click("s", "a", 3, 3)])
    assert published(output) == [("fallback", POPULARITY), ("model", AFTER_A)]
    assert output.counts.judgements == [], "popularity is no list of the model"


def test_a_click_below_the_position_is_skipped_whole() -> None:
    replay = hand()
    replay.step([click("s", "a", 1, 0), Record(0, 1, 0, None, b"")])
    before = replay.sessions.get(0, b"s")
    output = replay.step([click("s", "a", 1, 0), Record(0, 1, 0, None, b""), click("t", "b", 1, 2)])
    assert output.counts.skipped == 2
    assert letters(output) == []
    assert published(output) == [("model", AFTER_B)]
    assert replay.sessions.get(0, b"s") == before
    assert output.transaction.positions[0].next_offset == 3


def test_missing_offsets_are_reported_as_holes() -> None:
    output = hand().step([click("s", "a", 1, 0), click("s", "a", 1, 3), click("s", "a", 1, 7)])
    assert output.holes[0] == [(1, 3), (4, 7)]
    assert output.transaction.positions[0].next_offset == 8


def test_a_bad_click_becomes_a_dead_letter_and_the_next_click_is_served() -> None:
    bad = Record(0, 0, RECORD_MS, b"s", b"not json")
    output = hand().step([bad, click("s", "a", 1, 1)])
    (letter,) = letters(output)
    assert (letter.key, letter.value) == (b"s", b"not json")
    assert dict(letter.headers)["reason"] == Reason.NOT_JSON.encode()
    assert dict(letter.headers)["offset"] == b"0"
    assert published(output) == [("model", AFTER_A)]
    assert output.transaction.positions[0].watermark_ms == BEGIN_MS + 1


def test_partitions_of_one_batch_share_nothing() -> None:
    ours = click("s", "a", 5, 0)
    outputs = hand().step([ours, replace(ours, partition=1)])
    changelog = outputs.transaction.changelog
    assert [len(answers(outputs, p)) for p in (0, 1)] == [1, 1]
    assert [decode_state(changelog[p][b"s"] or b"").n_clicks for p in (0, 1)] == [1, 1]


# -- the rules of time --------------------------------------------------------------------------


@pytest.mark.parametrize(("gap_ms", "n_clicks"), [(IDLE_MS, 2), (IDLE_MS + 1, 1)])
def test_a_gap_longer_than_the_idle_timeout_begins_the_session_anew(
    gap_ms: int, n_clicks: int
) -> None:
    replay = hand()
    replay.step([click("s", "a", 100, 0)])
    output = replay.step([click("s", "b", 100 + gap_ms, 1)])
    assert state_of(replay).n_clicks == n_clicks
    assert output.counts.expired == 2 - n_clicks


@pytest.mark.parametrize(("ahead_ms", "n_clicks"), [(1500, 2), (1501, 1)])
def test_a_session_is_dead_when_the_watermark_has_left_it_behind(
    ahead_ms: int, n_clicks: int
) -> None:
    """Also for a click whose own gap is small: it comes too late to find it."""
    replay = hand()
    replay.step([click("s", "a", 100, 0), click("other", "a", 100 + ahead_ms, 1)])
    output = replay.step([click("s", "b", 101, 2)])
    assert state_of(replay).n_clicks == n_clicks
    assert output.counts.judgements == ([Judgement(False, 1)] if n_clicks == 2 else [])


@pytest.mark.parametrize("lateness_ms", [0, LATENESS_MS])
@pytest.mark.parametrize("collect", [False, True])
def test_a_producer_whose_clock_is_slow_has_sessions_like_any_other(
    lateness_ms: int, collect: bool
) -> None:
    """However far its clicks are behind those of a punctual one, whose clicks come in between."""
    slow_ms = 100 * IDLE_MS
    log = [click("punctual", "a", slow_ms, 0)]
    for n, (item, event) in enumerate([("a", "e1"), ("a", "e1"), ("b", "e2"), ("a", "e1")]):
        log.append(click("slow", item, n * IDLE_MS // 2, 2 * n + 1, event))
        log.append(click("punctual", "b", slow_ms + n * IDLE_MS // 2, 2 * n + 2))
    rules = Rules(IDLE_MS, lateness_ms, BadClickLimit(1000, 0.5))
    replay = Replay(HAND, HAND_SCORER, rules, collect).run([r] for r in log)
    said = [published(output)[0][0] for output in replay.outputs if output.counts.stale]
    assert said == ["model", "duplicate", "model", "duplicate"]
    assert state_of(replay, b"slow").n_clicks == 2
    assert sum(output.counts.begun for output in replay.outputs) == 2
    # Its sessions end as well: by the gap between its own clicks, and by the watermark.
    replay.step([click("slow", "a", 3 * IDLE_MS, 9, "e3")])
    assert state_of(replay, b"slow").n_clicks == 1
    now_ms = slow_ms + 3 * IDLE_MS // 2
    for n, (more_ms, outcome) in enumerate([(IDLE_MS + lateness_ms, "duplicate"), (1, "model")]):
        now_ms += more_ms
        replay.step([click("punctual", "a", now_ms, 2 * n + 10)])
        output = replay.step([click("slow", "a", 3 * IDLE_MS, 2 * n + 11, "e3")])
        assert published(output)[0][0] == outcome


def test_a_lag_that_stays_the_same_ends_no_session_even_with_lateness_0() -> None:
    replay = hand(Rules(IDLE_MS, 0, BadClickLimit(1000, 0.5)))
    replay.step([click("punctual", "a", 2, 0), click("s", "a", 0, 1)])
    replay.step([click("punctual", "a", 2 + IDLE_MS, 2), click("s", "a", IDLE_MS, 3)])
    assert state_of(replay).n_clicks == 2


@pytest.mark.parametrize(("behind_ms", "stale"), [(1500, 0), (1501, 1)])
def test_a_stale_click_is_further_behind_than_timeout_and_lateness(
    behind_ms: int, stale: int
) -> None:
    log = [click("s", "a", 5000, 0), click("t", "a", 5000 - behind_ms, 1)]
    assert hand().step(log).counts.stale == stale
    assert hand(NEVER).step(log).counts.stale == 0


def test_the_watermark_is_the_largest_timestamp_of_a_good_click_at_lower_offsets() -> None:
    replay = hand()
    log = [
        click("s", "a", 100, 0),
        click("t", "a", 900, 1),
        click("u", "a", 300, 2),
        click("u", "\x00", 5000, 3),  # bad: its timestamp counts for nothing
    ]
    positions = [replay.step([r]).transaction.positions[0] for r in log]
    assert [position.watermark_ms - BEGIN_MS for position in positions] == [100, 900, 900, 900]


def test_a_click_does_not_move_the_watermark_it_is_judged_by() -> None:
    rules = Rules(IDLE_MS, -1, BadClickLimit(1000, 0.5))  # dead at the very idle timeout
    replay = hand(rules)
    replay.step([click("s", "a", 100, 0), click("s", "a", 100 + IDLE_MS, 1)])
    assert state_of(replay).n_clicks == 2


def test_a_dead_session_does_not_remember_its_events() -> None:
    """Whether or not expiry has collected it: a repeated event is a new click there."""
    log = [click("s", "a", 0, 0, "e"), click("t", "a", 1501, 1), click("s", "b", 1502, 2, "e")]
    for collect in (False, True):
        replay = Replay(HAND, HAND_SCORER, EXPIRING, collect).run([r] for r in log)
        assert published(replay.outputs[-1]) == [("model", AFTER_B)]
        assert replay.collected == collect


def test_an_earlier_timestamp_is_late_and_a_gap_of_0() -> None:
    replay = hand()
    replay.step([click("s", "a", 1000, 0)])
    output = replay.step([click("s", "b", 0, 1)])
    assert output.counts.late == 1
    assert output.counts.judgements == [Judgement(True, 1)]
    state = state_of(replay)
    assert (state.n_clicks, state.last_click_ms) == (2, BEGIN_MS + 1000)
    assert state.trail[-1].timestamp_ms == BEGIN_MS


def test_a_click_of_the_same_millisecond_is_not_late() -> None:
    log = [click("s", "a", 5, 0), click("s", "b", 5, 1)]
    assert hand().step(log).counts.late == 0


def test_without_an_idle_timeout_no_session_ends() -> None:
    replay = hand(NEVER)
    replay.step([click("s", "a", 0, 0), click("t", "a", 9_999_999, 1), click("s", "b", 2, 2)])
    assert state_of(replay).n_clicks == 2


# -- live quality -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "rank"),
    [
        ("b", 1),
        ("c", 3),  # c and d tie at 2: the last place of the score, as offline
        ("d", 3),
        ("e", 0),  # has the score of c and d and no place
        ("a", 0),
    ],
)
def test_the_next_click_is_ranked_in_the_last_list(second: str, rank: int) -> None:
    log = [click("s", "a", 0, 0), click("s", second, 1, 1)]
    assert hand().step(log).counts.judgements == [Judgement(False, rank)]
    replay = hand().run([r] for r in log)
    assert replay.outputs[1].counts.judgements == [Judgement(False, rank)]


def test_duplicates_and_unknown_items_neither_score_nor_replace_the_list() -> None:
    log = [
        click("s", "a", 0, 0, "e1"),
        click("s", "a", 0, 1, "e1"),  # the list after a still waits for its next click
        click("s", "d", 1, 2, "e2"),
        click("s", "unknown", 2, 3),
        click("s", "a", 3, 4),  # the last outcome was not the model's
    ]
    assert hand().step(log).counts.judgements == [Judgement(False, 3)]


def test_the_first_click_after_an_expired_session_judges_nothing() -> None:
    log = [click("s", "a", 0, 0), click("s", "b", IDLE_MS + 1, 1)]
    assert hand().step(log).counts.judgements == []


# -- the limit of bad clicks --------------------------------------------------------------------


def test_the_batch_that_crosses_the_limit_raises_and_does_so_again_after_a_restart() -> None:
    replay = hand(Rules(None, 0, BadClickLimit(run=3, share=0.5)))
    replay.step([click("s", "a", 1, 0), Record(0, 1, RECORD_MS, b"s", b"bad")])
    crossing = [Record(0, n, RECORD_MS, b"s", b"bad") for n in (2, 3, 4)]
    before = dict(replay.partition(0).states), replay.positions[0]
    for _ in range(2):  # positions pass through their bytes: the second is a restart
        with pytest.raises(BadClickLimitError, match="clicks-0, offsets 1 to 3: the limit is 3"):
            replay.step([click("t", "a", 1, 2), *crossing][1:])
        assert (dict(replay.partition(0).states), replay.positions[0]) == before
    replay.rules = Rules(None, 0, BadClickLimit(run=5, share=0.5))
    output = replay.step([*crossing, click("s", "b", 2, 5)])
    assert len(letters(output)) == 3
    assert published(output) == [("model", AFTER_B)]


@given(st.integers(1, 9))
def test_the_limit_is_met_at_the_same_place_from_any_split(size: int) -> None:
    log = [Record(0, n, RECORD_MS, None, b"") for n in range(40)]
    log[9] = click("s", "a", 1, 9)  # a good click ends a run
    replay = hand(Rules(None, 0, BadClickLimit(run=10, share=0.5)))
    with pytest.raises(BadClickLimitError, match="offsets 10 to 19"):
        replay.run(log[at : at + size] for at in range(0, len(log), size))
