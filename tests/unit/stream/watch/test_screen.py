"""The watch view as text: what an operator sees."""

from io import StringIO

from rich.console import Console

from stream.contract.messages import ClickRef, Item, Outcome, Recommendation
from stream.settings import WatchSettings
from stream.watch.judge import Judge
from stream.watch.screen import draw, session_line, summary_line
from stream.watch.tally import SessionView, Tally


def traffic() -> tuple[Tally, SessionView]:
    """Three clicks of one session, the last on the item listed second, and a bad click."""
    tally, judge = Tally(), Judge(None)
    items = [Item("tent", 2.0), Item("[red]lamp", 1.0)]
    for number, item_id in enumerate(["mug", "vase", "[red]lamp"]):
        source = f"clicks-0-{number}"
        tally.add_click(source, 1000, now_s=10.5)
        answer = Recommendation("s-1", items, "m", Outcome.MODEL, ClickRef(item_id, 0), 0)
        session = tally.add_recommendation(source, answer, judge.find(answer), 1009, now_s=10.5)
    tally.add_click("clicks-0-3", 1000, now_s=10.5)
    tally.add_dead_letter("clicks-0-3", "not_json")
    return tally, session


def drawn(tally: Tally, session: SessionView | None, settings: WatchSettings, trouble: str) -> str:
    out = StringIO()
    Console(width=120, file=out).print(draw(settings, tally, session, 11.0, trouble))
    return out.getvalue()


def test_the_view_shows_figures_the_session_and_its_list() -> None:
    text = drawn(*traffic(), WatchSettings(), trouble="")
    for shown in ("9 ms", "0.5000", "0.2500", "not_json 1", "session s-1, 3 clicks seen"):
        assert shown in text
    rows = [line for line in text.splitlines() if "lamp" in line]
    # Clicked third, found second in the list before; markup in an id is no markup.
    assert any("3 [red]lamp" in row and "#2" in row for row in rows)
    assert any("2 [red]lamp" in row and "1.00" in row for row in rows)
    assert any("vase" in line and "not listed" in line for line in text.splitlines())
    assert any("mug" in line and "first" in line for line in text.splitlines())


def test_the_view_keeps_its_height() -> None:
    tally, session = traffic()
    settings = WatchSettings()
    with_session = drawn(tally, session, settings, "").splitlines()
    assert len(drawn(Tally(), None, settings, "").splitlines()) == len(with_session)


def test_of_blended_lists_the_sources_of_hits_and_the_views_age_are_shown() -> None:
    tally, judge, settings = Tally(), Judge(None), WatchSettings()
    assert "hits by source: none" in drawn(tally, None, settings, "")
    assert "hits" not in summary_line(tally, 11.0, trouble="")
    items = [
        Item("tent", 0.5, "transitions"),
        Item("mug", 0.4, "network"),
        Item("cup", 0.1, "session"),
    ]
    for number, item_id in enumerate(["new", "tent", "tent", "mug", "vase"]):
        answer = Recommendation(
            "s-1", items, "m", Outcome.LIVE, ClickRef(item_id, 10_000), 0, view_ms=8_800
        )
        found = judge.find(answer)
        tally.add_recommendation(f"clicks-0-{number}", answer, found, 1009, now_s=10.5)
    text = drawn(tally, None, settings, "")
    for share in ("transitions 67 %", "popularity 0 %", "session 0 %", "network 33 %"):
        assert share in text
    assert [line for line in text.splitlines() if "1.2 s" in line and "p99 1.2 s" in line]
    line = summary_line(tally, 11.0, trouble="")
    assert "| hits transitions 2, network 1 | view age p50 1.2 s, p99 1.2 s |" in line
    assert len(text.splitlines()) == len(drawn(Tally(), None, settings, "").splitlines()) <= 24


def test_a_session_that_has_not_clicked_and_a_lost_broker_are_named() -> None:
    text = drawn(Tally(), None, WatchSettings(session="s-9"), "1/1 brokers are down")
    assert "session s-9 has not clicked yet" in text
    assert "1/1 brokers are down" in text


def test_outside_a_terminal_the_figures_are_one_line() -> None:
    tally, session = traffic()
    line = summary_line(tally, 11.0, trouble="")
    assert "\n" not in line
    assert "clicks 4 " in line
    assert "lists 3 " in line
    assert "waiting 0" in line
    assert "p50 9 ms, p99 9 ms" in line
    assert "Recall@20 0.5000, MRR@20 0.2500 of 2" in line
    assert "dead letters 1" in line
    assert session_line(session) == "s-1 click 3: [red]lamp (#2) -> tent, [red]lamp"


def test_what_a_stranger_wrote_does_not_reach_the_terminal_as_an_order() -> None:
    evil, shown = "s\x1b]0;owned\x07\x1b[2J\u202e", r"s\x1b]0;owned\x07\x1b[2J\u202e"
    tally = Tally()
    tally.add_click("clicks-0-0", 1000, now_s=10.5)
    answer = Recommendation(evil, [Item(evil, 1.0)], "m", Outcome.MODEL, ClickRef(evil, 0), 0)
    session = tally.add_recommendation("clicks-0-0", answer, None, 1009, now_s=10.5)
    tally.add_click("clicks-0-1", 1000, now_s=10.5)
    tally.add_dead_letter("clicks-0-1", evil)
    line = session_line(session)
    assert line.isprintable() and line.count(shown) == 3
    view = drawn(tally, session, WatchSettings(), "")
    assert all(text.isprintable() for text in view.splitlines()) and view.count(shown) >= 2


def test_what_was_passed_over_is_told_with_its_first_place() -> None:
    tally, session = traffic()
    assert "worker has written" not in summary_line(tally, 11.0, trouble="")
    tally.not_ours.add("lists-1 offset 5")
    tally.not_ours.add("letters-0 offset 9")
    tally.unreadable.add("clicks-0 offset 7", 30)
    view = drawn(tally, session, WatchSettings(), "")
    for shown in (
        "2 records that no worker has written, the first at lists-1 offset 5",
        "30 offsets skipped that the Kafka client cannot read, the first at clicks-0 offset 7",
    ):
        assert shown in summary_line(tally, 11.0, trouble="")
        assert shown in view
