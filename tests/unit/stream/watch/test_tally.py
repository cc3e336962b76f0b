"""What the watch view counts, from records in any order."""

from collections.abc import Iterator
from itertools import count

import pytest

from stream.contract.messages import ClickRef, Item, Outcome, Recommendation
from stream.watch import tally as module
from stream.watch.judge import Judge
from stream.watch.tally import SHOWN_CLICKS, SessionView, Tally


def answer(
    session_id: str = "s", item_id: str = "a", outcome: Outcome = Outcome.MODEL
) -> Recommendation:
    items = [Item("a", 2.0), Item("b", 1.0)]
    return Recommendation(session_id, items, "m", outcome, ClickRef(item_id, 0), 0)


def click_and_answer(
    tally: Tally,
    recommendation: Recommendation,
    sources: Iterator[int] | None = None,
    judge: Judge | None = None,
) -> SessionView:
    source = f"clicks-0-{next(sources or count())}"
    tally.add_click(source, 1000, now_s=0.5)
    found = judge.find(recommendation) if judge else None
    return tally.add_recommendation(source, recommendation, found, 1007, now_s=0.5)


@pytest.mark.parametrize("answer_first", [False, True])
def test_latency_is_append_to_append_whichever_record_is_read_first(answer_first: bool) -> None:
    tally = Tally()
    if answer_first:
        tally.add_recommendation("clicks-0-7", answer(), None, 1012, now_s=5.1)
    tally.add_click("clicks-0-7", 1000, now_s=5.2)
    if not answer_first:
        assert tally.waiting == 1
        tally.add_recommendation("clicks-0-7", answer(), None, 1012, now_s=5.3)
    assert tally.latency_ms(6.0, 0.5, 0.99) == [12, 12]
    assert tally.waiting == 0


def test_quantiles_are_nearest_ranks_of_the_last_ten_seconds() -> None:
    tally = Tally()
    for number in range(100):
        tally.add_click(f"clicks-0-{number}", 0, now_s=20.0)
        tally.add_recommendation(f"clicks-0-{number}", answer(), None, number + 1, now_s=20.5)
    tally.add_click("clicks-1-0", 0, now_s=5.0)
    tally.add_recommendation("clicks-1-0", answer(), None, 9999, now_s=5.0)
    assert tally.latency_ms(21.0, 0.5, 0.99) == [51, 100]
    assert tally.latency_ms(40.0, 0.5) is None


def test_a_dead_letter_read_before_its_click_leaves_nothing_waiting() -> None:
    tally = Tally()
    tally.add_dead_letter("clicks-0-1", "not_json")
    tally.add_click("clicks-0-1", 1000, 10.0)
    assert tally.waiting == 0
    assert tally.latency_ms(12.0, 0.5) is None


def test_a_dead_letter_ends_the_wait_for_an_answer() -> None:
    tally = Tally()
    tally.add_click("clicks-0-1", 0, now_s=0.0)
    tally.add_dead_letter("clicks-0-1", "not_json")
    assert tally.waiting == 0
    assert tally.dead_letters == {"not_json": 1}


def test_rates_are_those_of_whole_seconds() -> None:
    tally = Tally()
    for second in range(100, 105):
        for n in range(30):
            tally.add_click(f"clicks-{second}-{n}", 0, now_s=second + n / 30)
    tally.add_click("clicks-0-0", 0, now_s=105.0)
    assert tally.rates(105.0) == (30.0, 0.0)
    assert tally.clicks_by_second(105.0)[-6:] == [0, 30, 30, 30, 30, 30]


def test_a_session_shows_its_last_clicks_with_their_ranks() -> None:
    tally, sources, judge = Tally(), count(), Judge(None)
    for item_id in ("x", "b", "q"):
        session = click_and_answer(tally, answer(item_id=item_id), sources, judge)
    last = answer(item_id="?", outcome=Outcome.UNKNOWN_ITEM)
    session = click_and_answer(tally, last, sources, judge)
    assert [(step.item_id, step.rank) for step in session.steps] == [
        ("x", None),
        ("b", 2),
        ("q", 0),
        ("?", None),
    ]
    assert session.n_clicks == 4
    assert (tally.quality.predictions, tally.quality.hits) == (2, 1)
    assert tally.outcomes == {"model": 3, "unknown_item": 1}


def test_the_views_age_is_that_of_the_last_ten_seconds_and_below_0_where_it_is_ahead() -> None:
    tally = Tally()
    assert tally.view_age_ms(21.0, 0.5) is None
    for at_s, view_ms in ((5.0, 0), (20.0, 900), (20.1, 1_000), (20.2, 1_700), (20.3, None)):
        made = Recommendation("s", [], "m", Outcome.LIVE, ClickRef("a", 1_000), 0, view_ms)
        tally.add_recommendation(f"clicks-{at_s}", made, None, 0, now_s=at_s)
    assert tally.view_age_ms(21.0, 0.0, 0.5, 0.99) == [-700, 0, 100]


def test_the_session_shown_is_one_with_several_clicks_that_clicked_lately() -> None:
    tally, sources = Tally(), count()
    assert tally.busiest_session() is None
    for session_id in ("long", "long", "long", "other", "new"):
        click_and_answer(tally, answer(session_id), sources)
    busiest = tally.busiest_session()
    assert busiest is not None
    assert busiest.session_id == "long"


def test_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TRAILS", 10)
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    tally = Tally()
    for number in range(200):
        tally.add_click(f"clicks-0-{number}", 0, now_s=float(number))
        tally.add_recommendation(
            f"clicks-1-{number}", answer(f"s{number}"), None, 0, now_s=float(number)
        )
    assert tally.waiting == 10
    assert tally.session("s189") is None
    assert tally.session("s199") is not None
    for _ in range(SHOWN_CLICKS + 5):
        session = tally.add_recommendation("clicks-2-0", answer("s199"), None, 0, now_s=200.0)
    assert len(session.steps) == SHOWN_CLICKS
    assert len(tally.clicks_by_second(200.0)) == module.HISTORY_S
