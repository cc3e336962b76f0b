"""Send clicks at a steady rate, whether or not the worker keeps up: ``bench.serving.producer``.

A process of its own with a plain Kafka client, like a shop's: idempotent, murmur2, no linger.
Prints one line of JSON at the end.
"""

import sys
import time
from random import Random

import msgspec
from confluent_kafka import KafkaError, Message, Producer
from pydantic import PositiveFloat, PositiveInt

from stream.settings import KafkaSettings
from stream.transport.clients import confluent_options
from train.command import TrainError, run_command

OPEN_SESSIONS = 10_000
"""As many as at 1,000 clicks/s with ten seconds between a visitor's clicks."""
LONGEST_SESSION = 50
PRODUCER_OPTIONS = {"enable.idempotence": True, "partitioner": "murmur2_random", "linger.ms": 0}
BACKLOG_OPTIONS = PRODUCER_OPTIONS | {"linger.ms": 20, "queue.buffering.max.messages": 1_000_000}


class ClickStream:
    """An endless stream of clicks, the same for the same seed.

    A session has 2 to 50 clicks by a power law (exponent 2, 5.6 on average, as the demo's shop).
    Each click goes to one of the open sessions, chosen evenly; a session that ends is replaced by
    a new one. Items are ``item-0`` to ``item-<n_items - 1>``, the lower the more popular.
    """

    def __init__(self, n_items: int, seed: int, open_sessions: int = OPEN_SESSIONS) -> None:
        self._random = Random(seed)
        self._n_items = n_items
        lengths = range(2, LONGEST_SESSION + 1)
        self._lengths, self._odds = list(lengths), [n**-2.0 for n in lengths]
        self._session_ids = [self._new_id() for _ in range(open_sessions)]
        self._clicks_left = [self._new_length() for _ in range(open_sessions)]

    def click(self, timestamp_ms: int) -> tuple[bytes, bytes]:
        random = self._random
        at = random.randrange(len(self._session_ids))
        session_id = self._session_ids[at]
        self._clicks_left[at] -= 1
        if not self._clicks_left[at]:
            self._session_ids[at] = self._new_id()
            self._clicks_left[at] = self._new_length()
        value = {
            "session_id": session_id,
            "item_id": f"item-{int(self._n_items * random.random() ** 3)}",
            "timestamp_ms": timestamp_ms,
            "event_id": f"{random.getrandbits(64):016x}",
            "event_type": "view",
        }
        return session_id.encode(), msgspec.json.encode(value)

    def _new_id(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def _new_length(self) -> int:
        return self._random.choices(self._lengths, self._odds)[0]


class ProducerSettings(KafkaSettings):
    """Send clicks at a steady rate."""

    rate: PositiveInt
    """Clicks a second, evenly spaced."""
    seconds: PositiveFloat
    """How long to send."""
    n_items: PositiveInt
    """Items of the catalogue."""
    seed: int
    """Of the clicks."""

    @property
    def n_clicks(self) -> int:
        return round(self.rate * self.seconds)


class ProducerReport(msgspec.Struct):
    """What was sent, and how far the producer itself ever fell behind its schedule."""

    sent: int
    refused: int
    most_behind_ms: float


class Sender:
    """A producer that counts what the broker refused."""

    def __init__(self, settings: KafkaSettings, options: dict[str, object]) -> None:
        self._producer = Producer(confluent_options(settings) | options)
        self._topic = settings.clicks_topic
        self.refused = 0

    def send(self, key: bytes, value: bytes) -> None:
        self._producer.produce(self._topic, value, key, on_delivery=self._delivered)
        self._producer.poll(0)

    def flush(self) -> None:
        self._producer.flush()

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.refused += 1


def send_backlog(settings: KafkaSettings, n_items: int, n_clicks: int, seed: int) -> None:
    """Fill the clicks topic as fast as possible."""
    clicks = ClickStream(n_items, seed)
    sender = Sender(settings, BACKLOG_OPTIONS)
    for _ in range(n_clicks):
        sender.send(*clicks.click(time.time_ns() // 1_000_000))
    sender.flush()
    if sender.refused:
        raise TrainError(f"the broker refused {sender.refused} of {n_clicks} clicks")


def send_paced(settings: ProducerSettings) -> ProducerReport:
    """Send at the rate; returns when the broker has everything."""
    clicks = ClickStream(settings.n_items, settings.seed)
    sender = Sender(settings, PRODUCER_OPTIONS)
    most_behind_s = 0.0
    started = time.perf_counter()
    for n in range(settings.n_clicks):
        wait_s = started + n / settings.rate - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        else:
            most_behind_s = max(most_behind_s, -wait_s)
        sender.send(*clicks.click(time.time_ns() // 1_000_000))
    sender.flush()
    return ProducerReport(settings.n_clicks, sender.refused, round(most_behind_s * 1000, 1))


def run(settings: ProducerSettings) -> None:
    print(msgspec.json.encode(send_paced(settings)).decode())


if __name__ == "__main__":
    sys.exit(run_command(ProducerSettings, run))
