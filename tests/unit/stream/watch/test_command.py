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
