"""How what was read of a topic is handed over: all of it soon, but not all at once."""

import pytest

from stream.settings import KafkaSettings
from stream.transport.view_reader import LEAST_TAKEN, SPREAD_S, Change, ViewReader


class Reader(ViewReader):
    """One that reads nothing: what it has read is put there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(KafkaSettings(bootstrap_servers="127.0.0.1:1"), "view")
        self.now_s = 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now_s)

    def read(self, n: int) -> list[Change]:
        changes: list[Change] = [(b"%d" % i, None) for i in range(n)]
        self._changes.extend(changes)
        return changes


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(monkeypatch)


def test_everything_is_taken_the_first_time_and_after_a_pause(reader: Reader) -> None:
    assert reader.changes() == []
    reader.now_s += SPREAD_S
    read = reader.read(5_000)
    assert reader.changes() == read
    assert reader.changes() == []


def test_what_comes_at_once_is_taken_bit_by_bit(reader: Reader) -> None:
    reader.changes()
    n_read, most = 5_000, 5_000 * 0.01 / SPREAD_S
    read = reader.read(n_read)
    taken: list[Change] = []
    while len(taken) < n_read:
        reader.now_s += 0.01
        step = reader.changes()
        taken += step
        assert len(step) <= most
        assert len(step) >= LEAST_TAKEN or len(taken) == n_read
    assert taken == read
    assert reader.now_s - 100.0 < 4 * SPREAD_S
