"""What the watch view makes of single records, whatever is in them."""

from confluent_kafka import Message

from stream.settings import WatchSettings
from stream.watch.command import _count
from stream.watch.judge import Judge
from stream.watch.tally import Tally

SETTINGS = WatchSettings()


def test_a_dead_letter_counts_whatever_headers_its_click_had() -> None:
    own = [("trace", b"\xff\xfe"), ("", b"\x80"), ("none", None), ("reason", b"\xff")]
    ours = [("topic", b"clicks"), ("partition", b"0"), ("offset", b"7"), ("reason", b"not_json")]
    topic = SETTINGS.dead_letter_topic
    letter = Message(topic, 0, 0, None, None, [*own, *ours], timestamp=(2, 1000))
    tally = Tally()
    tally.add_click("clicks-0-7", 1000, now_s=10.0)
    assert _count(SETTINGS, tally, Judge(None), letter, 10.0) is None
    assert (dict(tally.dead_letters), tally.waiting) == ({"not_json": 1}, 0)


def test_records_that_are_not_ours_are_counted_and_the_first_is_named() -> None:
    lists, letters = SETTINGS.recommendations_topic, SETTINGS.dead_letter_topic
    tally = Tally()
    for topic, offset, value in ((lists, 5, b"{"), (lists, 6, None), (letters, 0, b"x")):
        strange = Message(topic, 1, offset, b"k", value, [("source", b"a")], timestamp=(2, 1000))
        assert _count(SETTINGS, tally, Judge(None), strange, 10.0) is None
    assert (tally.not_ours.count, tally.not_ours.first) == (3, f"{lists}-1 offset 5")
    assert (tally.recommendations, tally.dead_letters.total()) == (0, 0)
