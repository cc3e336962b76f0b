"""Ranks of next clicks in published lists, worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.contract.messages import ClickRef, Item, Outcome, Recommendation
from stream.counts import Found, Quality, rank_in_list
from stream.watch.judge import Judge

MINUTE_MS = 60_000


def listed(*pairs: tuple[str, float]) -> list[Item]:
    return [Item(item_id, score) for item_id, score in pairs]


def rank_of(items: list[Item], item_id: str) -> int:
    return rank_in_list([i.item_id for i in items], [i.score for i in items], item_id)


def answer(
    session_id: str,
    item_id: str,
    items: list[Item],
    *,
    at_ms: int = 0,
    outcome: Outcome = Outcome.MODEL,
) -> Recommendation:
    return Recommendation(session_id, items, "m", outcome, ClickRef(item_id, at_ms), 0)


ABC = listed(("a", 3.0), ("b", 2.0), ("c", 1.0))


@pytest.mark.parametrize(
    ("items", "item_id", "rank"),
    [
        (ABC, "a", 1),
        (ABC, "c", 3),
        (ABC, "d", 0),
        ([], "a", 0),
        # b, c and d have one score: each of them counts as the last of the three.
        (listed(("a", 3.0), ("b", 2.0), ("c", 2.0), ("d", 2.0), ("e", 1.0)), "b", 4),
        (listed(("a", 3.0), ("b", 2.0), ("c", 2.0), ("d", 2.0), ("e", 1.0)), "d", 4),
        (listed(("a", 3.0), ("b", 2.0), ("c", 2.0), ("d", 2.0), ("e", 1.0)), "e", 5),
    ],
)
def test_rank_is_the_last_position_of_the_items_score(
    items: list[Item], item_id: str, rank: int
) -> None:
    assert rank_of(items, item_id) == rank


@given(st.lists(st.integers(0, 5), max_size=20).map(lambda scores: sorted(scores, reverse=True)))
def test_rank_counts_the_items_that_do_not_score_below(scores: list[int]) -> None:
    items = listed(*((f"i{n}", float(score)) for n, score in enumerate(scores)))
    for item in items:
        assert rank_of(items, item.item_id) == sum(s >= item.score for s in scores)


def test_a_hit_says_which_source_brought_the_item() -> None:
    judge = Judge(idle_timeout_s=None)
    items = [Item("a", 0.5, "transitions"), Item("b", 0.4, "network"), Item("c", 0.1)]
    found = [judge.find(answer("s", item_id, items)) for item_id in "xabcx"]
    assert found == [None, Found(1, "transitions"), Found(2, "network"), Found(3), Found(0)]


def test_a_click_is_ranked_in_the_list_before_it_of_its_own_session() -> None:
    judge = Judge(idle_timeout_s=None)
    assert judge.rank(answer("s", "x", ABC)) is None
    assert judge.rank(answer("t", "a", listed(("z", 1.0)))) is None
    assert judge.rank(answer("s", "b", listed(("b", 9.0)))) == 2
    assert judge.rank(answer("s", "b", ABC)) == 1
    assert judge.rank(answer("t", "b", ABC)) == 0


@pytest.mark.parametrize("outcome", [Outcome.DUPLICATE, Outcome.UNKNOWN_ITEM, Outcome.FALLBACK])
def test_an_answer_without_the_model_neither_judges_nor_replaces_the_list(
    outcome: Outcome,
) -> None:
    judge = Judge(idle_timeout_s=None)
    judge.rank(answer("s", "x", ABC))
    assert judge.rank(answer("s", "a", listed(("q", 1.0)), outcome=outcome)) is None
    assert judge.rank(answer("s", "c", ABC)) == 3


def test_a_click_past_the_idle_timeout_opens_the_session_anew() -> None:
    judge = Judge(idle_timeout_s=30 * 60)
    judge.rank(answer("s", "x", ABC, at_ms=0))
    assert judge.rank(answer("s", "a", ABC, at_ms=30 * MINUTE_MS)) == 1
    assert judge.rank(answer("s", "a", ABC, at_ms=60 * MINUTE_MS + 1)) is None
    assert judge.rank(answer("s", "b", ABC, at_ms=61 * MINUTE_MS)) == 2


def test_a_late_click_does_not_turn_the_sessions_clock_back() -> None:
    judge = Judge(idle_timeout_s=30 * 60)
    judge.rank(answer("s", "x", ABC, at_ms=20 * MINUTE_MS))
    assert judge.rank(answer("s", "b", ABC, at_ms=1 * MINUTE_MS)) == 2
    # 29 minutes after the newest click, 48 after the late one.
    assert judge.rank(answer("s", "a", ABC, at_ms=49 * MINUTE_MS)) == 1


def test_an_unknown_item_does_not_keep_a_session_alive() -> None:
    judge = Judge(idle_timeout_s=30 * 60)
    judge.rank(answer("s", "x", ABC, at_ms=0))
    judge.rank(answer("s", "?", ABC, at_ms=20 * MINUTE_MS, outcome=Outcome.UNKNOWN_ITEM))
    assert judge.rank(answer("s", "a", ABC, at_ms=40 * MINUTE_MS)) is None


def test_the_session_that_was_quiet_for_longest_is_forgotten_first() -> None:
    judge = Judge(idle_timeout_s=None, max_sessions=2)
    for session_id in ("s", "t", "s", "u"):
        judge.rank(answer(session_id, "a", ABC))
    assert judge.rank(answer("s", "a", ABC)) == 1
    assert judge.rank(answer("t", "a", ABC)) is None


def test_quality_of_four_judged_lists_by_hand() -> None:
    quality = Quality(k=20)
    for rank in (1, 4, 21, 0):
        quality.add(rank)
    assert quality.predictions == 4
    assert quality.recall == 2 / 4
    assert quality.mrr == (1 + 1 / 4) / 4


def test_quality_of_nothing_is_zero() -> None:
    assert (Quality(k=20).recall, Quality(k=20).mrr) == (0.0, 0.0)
