"""Lists as they are served, against the blend that is written down."""

import math
from array import array
from typing import Any

import numpy as np
import pytest

from stream.contract.items import ItemRecord
from stream.live.blend import blend
from stream.live.counts import ItemCounts, steps
from stream.live.global_view import GlobalView
from stream.live.lists import Lister, NetworkBest, Wanted
from stream.live.rules import PREFIXES, SOURCES, Rules, prefix_class
from stream.live.view import Candidates

BEGIN_MS = 1_700_000_000_000
MINUTE_MS = 60_000
KNOWN = [f"known-{n}" for n in range(30)]


def a_view(rules: Rules, seed: int, n_clicks: int = 2_000) -> GlobalView:
    """The view behind random sessions over known and new items."""
    random = np.random.default_rng(seed)
    names = KNOWN + [f"new-{n}" for n in range(200)]
    counts: dict[str, ItemCounts] = {}
    trail: list[str] = []
    for n in range(n_clicks):
        item = names[int(random.zipf(1.3)) % len(names)]
        at_ms = BEGIN_MS + n * 1000
        events = [(item, item, 0), *steps(trail[-3:], item)]
        for name, other, step in events:
            counts.setdefault(name, ItemCounts(rules, at_ms)).count(other, step, at_ms)
        trail = [*trail, item] if random.random() < 0.8 else []
    view = GlobalView(rules, KNOWN)
    view.take((name.encode(), of_item.encode()) for name, of_item in counts.items())
    return view


@pytest.mark.parametrize("excludes_seen", [False, True])
def test_a_served_list_is_the_best_of_the_blend(excludes_seen: bool) -> None:
    rules = Rules(20 * MINUTE_MS, 75_000, excludes_seen)
    view, random = a_view(rules, 1), np.random.default_rng(2)
    weights = random.random((PREFIXES, len(rules.sources) + 1))
    lister, k = Lister(view, weights, 10), 10
    now_ms = BEGIN_MS + 2_000_000
    seen_sources: set[str] = set()
    n_rows = len(view.names)
    wanted = []
    for n in range(300):
        trail = random.integers(n_rows, size=1 + n % 7 + 30 * (n % 9 == 0)).tolist()
        excluded = trail if excludes_seen else ()
        wanted.append(Wanted(trail, len(trail), now_ms, n if n % 2 else -1, excluded))
    items = np.array([random.permutation(len(KNOWN))[:12] for _ in wanted])
    network = NetworkBest(items, random.random(items.shape) * 0.2)
    lists = lister.make(lister.gather(wanted), network, len(view.names))
    for n, (one, listed) in enumerate(zip(wanted, lists, strict=True)):
        trail = [*one.trail]
        candidates = [view.candidates(trail, now_ms)]
        if n % 2:
            of_network = Candidates(items[n], np.full(12, len(rules.sources)), network.shares[n])
            candidates.append(of_network)
        expected = blend(
            Candidates.of(candidates),
            weights[prefix_class(len(trail))],
            trail if excludes_seen else (),
        )
        assert listed.scores == pytest.approx(expected.score[:k].tolist(), rel=1e-6)
        # Where scores are equal but for their last bits, the order may be another.
        assert set(listed.items) <= set(expected.item[: k + 3].tolist())
        assert len(set(listed.items)) == len(listed.items)
        seen_sources |= {SOURCES[source] for source in listed.sources}
        if excludes_seen:
            assert not set(listed.items) & set(trail)
    assert seen_sources == (set(SOURCES) - {"session"} if excludes_seen else set(SOURCES))


def test_the_source_of_an_item_is_the_one_that_gave_most_of_its_score() -> None:
    rules = Rules(20 * MINUTE_MS, 75_000, excludes_seen=False)
    view = GlobalView(rules, KNOWN)
    weights = np.zeros((PREFIXES, len(rules.sources) + 1))
    weights[:, -1], weights[:, -2], weights[:, -3] = 1.0, 0.2, 0.5  # network, earlier, last
    lister = Lister(view, weights, 3)
    network = NetworkBest(np.array([[7, 4]]), np.array([[0.6, 0.3]]))
    wanted = [Wanted([5, 4], 2, BEGIN_MS, 0), Wanted([5], 1, BEGIN_MS, -1)]
    listed, alone = lister.make(lister.gather(wanted), network, len(view.names))
    assert listed.items == [4, 7, 5]
    assert listed.scores == pytest.approx([0.8, 0.6, 0.2])
    assert [SOURCES[source] for source in listed.sources] == ["session", "network", "session"]
    assert listed.is_of_neighbours
    assert (alone.items, alone.sources) == ([5], [SOURCES.index("session")])


def test_equal_scores_are_listed_by_row_and_few_candidates_make_a_short_list() -> None:
    rules = Rules(20 * MINUTE_MS, 75_000, excludes_seen=False)
    view = GlobalView(rules, KNOWN)
    weights = np.full((PREFIXES, len(rules.sources) + 1), 0.5)
    lister = Lister(view, weights, 3)
    network = NetworkBest(np.array([[9, 4, 7, 8]]), np.array([[0.2, 0.2, 0.2, 0.3]]))
    wanted = [
        Wanted([5], 1, BEGIN_MS, 0, [5]),
        Wanted([5], 1, BEGIN_MS, 0, [5, 8, 4]),
        Wanted([5], 1, BEGIN_MS, 0, [5, 8, 4, 29, 9]),
        Wanted([5], 1, BEGIN_MS, -1, [5]),
    ]
    lists = lister.make(lister.gather(wanted), network, len(view.names))
    assert [listed.items for listed in lists] == [[8, 4, 7], [7, 9], [7], []]
    assert [len(listed.scores) for listed in lists] == [3, 2, 1, 0]


def test_the_view_is_what_was_taken_last_whatever_came_before() -> None:
    rules = Rules(20 * MINUTE_MS, 75_000, excludes_seen=False)
    view = GlobalView(rules, KNOWN)
    counts = ItemCounts(rules, BEGIN_MS)
    for n in range(3):
        counts.count("b", 1, BEGIN_MS + n)
        counts.count("a", 0, BEGIN_MS + n)
        view.take([(b"a", counts.encode())])
    assert (len(view), view.as_of_ms) == (1, BEGIN_MS + 2)
    row = view.row("a")
    successors = view.following(row)
    assert successors is not None
    assert [view.names[item] for item in successors.items.tolist()] == ["b"]
    assert view.clicks(np.array([row]), BEGIN_MS + 2)[0] == pytest.approx(3.0, rel=1e-4)
    view.take([(b"a", None), (b"nobody", None)])
    assert len(view) == 0
    assert view.following(row) is None
    assert view.clicks(np.array([row]), BEGIN_MS)[0] == 0.0


def test_what_is_no_record_is_counted_and_changes_nothing() -> None:
    rules = Rules(20 * MINUTE_MS, 75_000, excludes_seen=False)
    view = GlobalView(rules)
    good = ItemCounts(rules, BEGIN_MS)
    good.count("b", 1, BEGIN_MS)
    view.take([(b"a", good.encode()), (b"b", b"none"), (b"\xff", good.encode()), (None, b"")])
    assert (len(view), view.n_unreadable) == (1, 3)
    view.take([(b"a", good.encode()[:60])])  # a head, and no body
    assert view.following(view.row("a")) is None
    assert view.n_unreadable == 4
    record = ItemRecord.decode(good.encode())
    impossible: list[dict[str, Any]] = [
        {"clicks": math.nan},
        {"clicks": -1.0},
        {"clicks": math.inf},
        {"clicks": 1.5},  # of one event
        {"as_of_ms": 2**60, "forget_at_ms": 2**60},
        {"as_of_ms": BEGIN_MS - 1},
        {"landmark_ms": 0},
        {"forget_at_ms": 0},
    ]
    view.take(
        (b"c", record._replace(head=record.head._replace(**numbers)).encode())
        for numbers in impossible
    )
    assert (len(view), view.n_unreadable) == (0, 4 + len(impossible))
    assert view.as_of_ms == BEGIN_MS
    no_counts = [record._replace(totals=[math.inf, 1.0]), record._replace(totals=[-1.0, 1.0])]
    for n, none in enumerate([*no_counts, record._replace(successor=[""])], start=1):
        view.take([(b"d", none.encode())])
        assert view.following(view.row("d")) is None
        assert view.n_unreadable == 4 + len(impossible) + n


def test_what_is_no_number_is_not_listed() -> None:
    """Weights that only a stranger can have written."""
    rules = Rules(20 * MINUTE_MS, 75_000, excludes_seen=False)
    counts = ItemCounts(rules, BEGIN_MS)
    for other in ("huge", "none", "good"):
        counts.count(other, 1, BEGIN_MS)
    record = ItemRecord.decode(counts.encode())
    weights = array("f", [3e38, math.nan, 1.0] * 2).tobytes()
    totals = [1e-30] * 2
    view = GlobalView(rules, KNOWN)
    view.take([(b"known-5", record._replace(weights=weights, totals=totals).encode())])
    uniform = np.full((PREFIXES, len(rules.sources) + 1), 0.1)
    lister = Lister(view, uniform, 20)
    nothing = NetworkBest(np.zeros((0, 0), dtype=np.int64), np.zeros((0, 0)))
    gathered = lister.gather([Wanted([5], 1, BEGIN_MS, -1)])
    (listed,) = lister.make(gathered, nothing, len(view.names))
    assert [view.names[item] for item in listed.items] == ["good", "known-5"]
    assert np.isfinite(listed.scores).all()
    written_down = blend(view.candidates([5], BEGIN_MS), uniform[0])
    assert written_down.item.tolist() == listed.items


def test_rows_are_numbered_anew_when_most_items_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.live.global_view.SPARE_ROWS", 10)
    rules = Rules(20 * MINUTE_MS, 75_000, excludes_seen=False)
    view = GlobalView(rules, KNOWN)
    for n in range(100):
        counts = ItemCounts(rules, BEGIN_MS + n)
        counts.count(f"item-{n}", 0, BEGIN_MS + n)
        counts.count(f"item-{n + 1}", 1, BEGIN_MS + n)
        gone = [(b"item-%d" % (n - 3), None)] if n > 2 else []
        view.take([(b"item-%d" % n, counts.encode()), *gone])
        assert len(view.names) <= len(KNOWN) + 2 * 4 + 10 + 2
    assert len(view) == 3
    assert view.names[: len(KNOWN)] == KNOWN
    for n in (97, 98, 99):
        row = view.row(f"item-{n}")
        successors = view.following(row)
        assert successors is not None
        assert [view.names[item] for item in successors.items.tolist()] == [f"item-{n + 1}"]
        assert view.clicks(np.array([row]), BEGIN_MS + n)[0] == pytest.approx(1.0)
