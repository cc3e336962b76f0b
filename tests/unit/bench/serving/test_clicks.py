"""The load is as a shop's: good clicks, sessions of a few clicks, interleaved."""

from collections import Counter
from itertools import pairwise

from bench.faults.traffic import LOG_BEGIN_MS
from bench.serving.producer import LONGEST_SESSION, ClickStream
from stream.contract.click import Click, ClickParser, Record

N_ITEMS = 1_000
N_OPEN = 100
N_CLICKS = 20_000


def parsed(n_clicks: int, seed: int) -> list[Click]:
    stream, parse_click = ClickStream(N_ITEMS, seed, N_OPEN), ClickParser()
    clicks = []
    for offset in range(n_clicks):
        at_ms = LOG_BEGIN_MS + offset
        key, value = stream.click(at_ms)
        click = parse_click(Record(0, offset, at_ms, key, value))
        assert isinstance(click, Click)
        clicks.append(click)
    return clicks


def test_every_click_is_good_and_of_the_catalogue() -> None:
    known = {f"item-{index}" for index in range(N_ITEMS)}
    clicks = parsed(2_000, seed=1)
    assert {click.item_id for click in clicks} <= known
    assert len({click.event_hash for click in clicks}) == len(clicks)


def test_sessions_have_two_to_fifty_clicks_and_interleave() -> None:
    clicks = parsed(N_CLICKS, seed=2)
    lengths = Counter(click.session for click in clicks)
    # All sessions but those still open at the end are whole.
    assert sum(length == 1 for length in lengths.values()) <= N_OPEN
    assert max(lengths.values()) <= LONGEST_SESSION
    assert 5.0 < N_CLICKS / len(lengths) < 6.5
    neighbours = sum(a.session == b.session for a, b in pairwise(clicks))
    assert neighbours < 2 * N_CLICKS / N_OPEN


def test_one_seed_gives_the_same_clicks() -> None:
    assert parsed(100, seed=3) == parsed(100, seed=3)
    assert parsed(100, seed=3) != parsed(100, seed=4)
