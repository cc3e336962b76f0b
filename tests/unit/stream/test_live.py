"""What clicks are answered with where there is no view, an old one, or one of another bundle."""

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.serving.bundles import even_live, write_tiny_bundle
from stream.batch import Planner, Rules
from stream.contract.messages import Recommendation, Target
from stream.contract.records import Record
from stream.live.counts import ItemCounts, steps
from stream.live.rules import Rules as LiveRules
from stream.model.bundle import Live
from stream.model.models import Models, load_model
from stream.position import BadClickLimit, Position
from stream.session import SessionState, decode_state
from stream.table import States
from tests.unit.stream.replay import BEGIN_MS, RECORD_MS
from train.data.context import ContextField

HOUR_MS = 3_600_000
Changes = list[tuple[bytes | None, bytes | None]]


class Served:
    """Clicks through a bundle whose lists learn from the stream, beside a view of these records."""

    def __init__(self, folder: Path, changes: Changes, live: Live | None = None) -> None:
        gap = ContextField(name="gap", kind="gap", edges_s=(0.1, 0.5, 2.0))
        bundle = write_tiny_bundle(folder, context=(gap,), live=live or even_live(20))
        model = load_model(bundle, 1)
        assert model.blender is not None
        waiting = [changes]
        model.blender.changes = lambda: waiting.pop() if waiting else []
        self.view = model.blender.view
        rules = Rules.of(model.manifest, BadClickLimit(10, 0.9))
        self.planner = Planner(Models(model, 10**6), rules, "clicks", 4)
        self.states = States()
        table = self.planner.new_partition()
        table.position = Position(0, "t")
        self.states.own({0: table})

    def answers(self, clicks: Sequence[tuple[str, str, int]]) -> list[Recommendation]:
        """One by one: session, item, time behind the beginning."""
        found = []
        for session, item, at_ms in clicks:
            self.planner.refresh()
            position = self.states.partitions[0].position
            fields = {"session_id": session, "item_id": item, "timestamp_ms": BEGIN_MS + at_ms}
            value = json.dumps(fields).encode()
            record = Record(0, position.next_offset, RECORD_MS + at_ms, session.encode(), value)
            plan = self.planner.plan({0: [record]}, {0: position}, self.states.get)
            self.planner.score(plan)
            self.planner.advance(plan)
            self.states.apply(plan.transaction)
            self.planner.answer(plan, 0)
            (message,) = plan.transaction.messages[Target.RECOMMENDATIONS][0]
            found.append(msgspec.json.decode(message.value or b"", type=Recommendation))
        return found

    def sessions(self) -> dict[bytes, SessionState]:
        states = self.states.partitions[0].states
        return {key: decode_state(raw) for key, raw in states.items()}


def counts_of(trail: Sequence[str], rules: LiveRules, every_ms: int = 1000) -> Changes:
    """The view's records behind one session of these items."""
    counts: dict[str, ItemCounts] = {}
    for n, item in enumerate(trail):
        at_ms = BEGIN_MS + n * every_ms
        for name, other, step in [(item, item, 0), *steps(trail[max(0, n - 3) : n], item)]:
            counts.setdefault(name, ItemCounts(rules, at_ms)).count(other, step, at_ms)
    return [(name.encode(), of_item.encode()) for name, of_item in counts.items()]


RULES = even_live(20).rules
ALIENS = [f"alien-{n % 7}" for n in range(30)]


def test_without_a_view_the_network_answers_and_what_it_does_not_know_gets_popular_items(
    tmp_path: Path,
) -> None:
    served = Served(tmp_path, [])
    first, second, known = served.answers([("s", "x", 0), ("s", "y", 1), ("s", "item-1", 2)])
    assert [first.outcome, second.outcome, known.outcome] == ["fallback", "fallback", "model"]
    assert [item.item_id for item in first.items] == [f"item-{n}" for n in range(5)]
    assert first.items == second.items
    assert known.view_ms is None
    assert "network" in {item.source for item in known.items}


def test_where_no_item_of_the_bundle_is_ever_clicked_all_answers_are_live_or_fallback(
    tmp_path: Path,
) -> None:
    clicks = [("s", item, 1000 * n) for n, item in enumerate(ALIENS)]
    nothing = Served(tmp_path / "a", []).answers(clicks)
    assert {answer.outcome for answer in nothing} == {"fallback"}
    something = Served(tmp_path / "b", counts_of(ALIENS, RULES)).answers(clicks)
    assert {answer.outcome for answer in something} == {"live"}
    for answer in something:
        assert answer.items[0].item_id.startswith("alien-")


def test_a_sessions_state_is_the_logs_alone_whatever_the_view_knows(tmp_path: Path) -> None:
    """A click on an item that the network does not know counts for the gap before the next one."""
    random = np.random.default_rng(1)
    without, beside = Served(tmp_path / "a", []), Served(tmp_path / "b", counts_of(ALIENS, RULES))
    at_ms = 0
    for _ in range(60):
        at_ms += int(random.choice([50, 300, 1000, 5000, 20 * 60_000]))
        known = random.random() < 0.5
        item = f"item-{random.integers(50)}" if known else f"alien-{random.integers(9)}"
        click = f"s{random.integers(2)}", item, at_ms
        without.answers([click])
        beside.answers([click])
        for key, state in without.sessions().items():
            other = beside.sessions()[key]
            assert (state.trail, state.n_clicks) == (other.trail, other.n_clicks)
            assert (state.seen_ms, state.last_click_ms) == (other.seen_ms, other.last_click_ms)
            np.testing.assert_array_equal(state.model_state, other.model_state)


@pytest.mark.parametrize("counted_s", [60, 86_400])
@pytest.mark.parametrize("served_s", [60, 86_400])
def test_a_view_that_is_old_or_was_counted_for_another_bundle_is_read_all_the_same(
    tmp_path: Path, counted_s: int, served_s: int
) -> None:
    changes = counts_of(
        ALIENS, LiveRules(1000 * counted_s, 60 * counted_s, excludes_seen=False), HOUR_MS
    )
    live = msgspec.structs.replace(
        even_live(20), time_scale_s=served_s, popularity_half_life_s=served_s // 16
    )
    served = Served(tmp_path, changes, live)
    for at_ms in (0, 29 * HOUR_MS, 90 * 24 * HOUR_MS):
        (answer,) = served.answers([(f"s{at_ms}", "alien-3", at_ms)])
        assert answer.outcome == "live"
        assert all(0.0 <= item.score <= 1.0 for item in answer.items)
        assert answer.items[0].item_id.startswith("alien-")
