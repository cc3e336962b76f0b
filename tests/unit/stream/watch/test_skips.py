"""Where the watch view goes on behind batches that the Kafka client cannot read."""

import msgspec

from stream.transport.unreadable import STILL_FETCHES, STILL_S
from stream.watch.skips import Skips


def statistics(seconds: float, offset: int, topic: str = "lists") -> str:
    """Partition 1 of a topic at an offset, with as many fetches as make so many seconds a round."""
    partition = {"broker": 1, "fetch_state": "active", "next_offset": offset, "ls_offset": 99}
    n_fetches = round(seconds * STILL_FETCHES / STILL_S)
    found = {
        "ts": round(seconds * 1e6),
        "brokers": {"b": {"nodeid": 1, "req": {"Fetch": n_fetches}}},
        "topics": {topic: {"partitions": {"1": partition}}},
    }
    return msgspec.json.encode(found).decode()


def test_a_batch_is_skipped_after_a_second_round_before_it() -> None:
    asked = []

    def batch_at(topic: str, partition: int, offset: int) -> range:
        asked.append((topic, partition, offset))
        return range(offset, offset + 3)

    skips = Skips({"clicks": range(2), "lists": range(2)}, batch_at)
    for round_ in range(3):
        assert [*skips.found()] == []
        skips.on_statistics(statistics(round_ * STILL_S, 7))
    assert asked == [("lists", 1, 7)]
    assert [*skips.found()] == [("lists", 1, range(7, 10))]
    skips.on_statistics(statistics(3 * STILL_S, 10))
    assert [*skips.found()] == []


def test_where_no_broker_tells_the_batch_it_is_asked_again() -> None:
    answers = iter([None, range(7, 8)])
    skips = Skips({"lists": [1]}, lambda *_: next(answers))
    found: list[tuple[str, int, range]] = []
    for round_ in range(4):
        skips.on_statistics(statistics(round_ * STILL_S, 7))
        found += skips.found()
    assert found == [("lists", 1, range(7, 8))]
