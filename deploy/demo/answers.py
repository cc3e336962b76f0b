"""A reader of our topics that is no part of the worker: what it saw is what was delivered."""

import threading
import time
from typing import Self

import msgspec

from deploy.demo.summary import Answer, Replay, parse_source
from deploy.reader import TopicReader, headers, place, read_topic
from stream.contract.messages import Recommendation
from stream.settings import KafkaSettings
from stream.transport.clients import confluent_options

_decode = msgspec.json.Decoder(Recommendation).decode


class AnswerReader:
    """Reads committed recommendations from the first one on while the block lasts. The reading
    thread must not wait: leave the interpreter to it while latencies are measured."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.answers: list[Answer] = []
        self._reader = TopicReader(confluent_options(settings), settings.recommendations_topic)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def wait_for(self, n_answers: int, quiet_s: float) -> None:
        """Return after so many answers, or when none has come for ``quiet_s``."""
        n_before, since = len(self.answers), time.monotonic()
        while len(self.answers) < n_answers and time.monotonic() - since < quiet_s:
            time.sleep(0.05)
            if len(self.answers) > n_before:
                n_before, since = len(self.answers), time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._reader.__exit__()

    def _read(self) -> None:
        while not self._ended.is_set():
            for record in self._reader.next(1, 0.2):  # one: a larger batch waits for its last
                received_ms = time.time() * 1000
                value = record.value()
                assert value is not None, "the recommendations topic holds no tombstones"
                source = parse_source(headers(record)["source"].decode())
                self.answers.append(Answer(source, _decode(value), received_ms))


def read_replay(settings: KafkaSettings, answers: list[Answer]) -> Replay:
    """What the topics hold now, with the answers that a reader saw."""
    client = confluent_options(settings)
    rejected = map(headers, read_topic(client, settings.dead_letter_topic))
    return Replay(
        appended_ms={place(r): r.timestamp()[1] for r in read_topic(client, settings.clicks_topic)},
        answers=answers,
        rejected={(int(h["partition"]), int(h["offset"])) for h in rejected},
    )
