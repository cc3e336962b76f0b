"""``python -m stream watch``: what goes in and out, read from the topics as any reader would.

Redrawn in a terminal; elsewhere a line every few seconds. It joins no consumer group, commits
nothing: looking changes nothing.
"""

import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import msgspec
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from rich.live import Live

from stream.contract.messages import Recommendation
from stream.settings import WatchSettings
from stream.transport.clients import confluent_options
from stream.transport.topics import existing_topics
from stream.watch.judge import Judge
from stream.watch.screen import draw, session_line, summary_line
from stream.watch.tally import SessionView, Tally

REDRAW_S = 0.25
LINE_EVERY_S = 5.0
SHOW_SESSION_S = 5.0
MAX_JUDGED_SESSIONS = 100_000

_decode = msgspec.json.Decoder(Recommendation).decode


def watch(settings: WatchSettings) -> None:
    """Show the topics until SIGINT or SIGTERM. Raises StreamError where there is nothing to see."""
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, end)
    trouble = _Trouble()
    consumer = Consumer(
        confluent_options(settings)
        | {
            "group.id": f"{settings.app_id}-watch",  # asked for, never joined: assign, no commit
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "error_cb": trouble.hear,
            "log_level": 2,  # what error_cb tells would also tear the view as lines on stderr
        }
    )
    try:
        consumer.assign(_starts(settings))
        tally, judge = Tally(), Judge(settings.idle_timeout_s, MAX_JUDGED_SESSIONS)
        view = _Screen(settings, tally) if sys.stdout.isatty() else _Lines(settings, tally)
        with view.open():
            while not ended:
                record = consumer.poll(REDRAW_S)
                if record is not None and record.error() is None:
                    trouble.text = ""
                    _count(settings, tally, judge, record, view.on_answer)
                view.refresh(trouble.text)
    finally:
        consumer.close()


class _Trouble:
    """The last thing librdkafka complained of, until records come again."""

    text = ""

    def hear(self, error: KafkaError) -> None:
        self.text = error.str()


class _Screen:
    """The view in a terminal."""

    def __init__(self, settings: WatchSettings, tally: Tally) -> None:
        self._settings, self._tally = settings, tally
        self._live = Live(auto_refresh=False, vertical_overflow="crop")
        self._drawn_s = 0.0
        self._shown: str | None = settings.session
        self._shown_since_s = 0.0

    def open(self) -> AbstractContextManager[object]:
        return self._live

    def on_answer(self, session: SessionView) -> None:
        """Nothing: all is drawn at the next refresh."""

    def refresh(self, trouble: str) -> None:
        now_s = time.monotonic()
        if now_s - self._drawn_s < REDRAW_S:
            return
        self._drawn_s = now_s
        self._live.update(
            draw(self._settings, self._tally, self._session(now_s), now_s, trouble), refresh=True
        )

    def _session(self, now_s: float) -> SessionView | None:
        if self._settings.session is None and now_s - self._shown_since_s > SHOW_SESSION_S:
            busiest = self._tally.busiest_session()
            self._shown = busiest.session_id if busiest else None
            self._shown_since_s = now_s
        return self._tally.session(self._shown) if self._shown is not None else None


class _Lines:
    """The view in a file or a pipe: the figures every few seconds, a followed session's clicks."""

    def __init__(self, settings: WatchSettings, tally: Tally) -> None:
        self._settings, self._tally = settings, tally
        self._written_s = time.monotonic()

    def open(self) -> AbstractContextManager[object]:
        return nullcontext()

    def on_answer(self, session: SessionView) -> None:
        if session.session_id == self._settings.session:
            print(session_line(session), flush=True)

    def refresh(self, trouble: str) -> None:
        now_s = time.monotonic()
        if now_s - self._written_s >= LINE_EVERY_S:
            self._written_s = now_s
            print(summary_line(self._tally, now_s, trouble), flush=True)


def _count(
    settings: WatchSettings,
    tally: Tally,
    judge: Judge,
    record: Message,
    on_answer: Callable[[SessionView], None],
) -> None:
    now_s = time.monotonic()
    topic, appended_ms = record.topic(), record.timestamp()[1]
    if topic == settings.clicks_topic:
        tally.add_click(f"{topic}-{record.partition()}-{record.offset()}", appended_ms, now_s)
        return
    headers = _headers(record)
    if topic == settings.dead_letter_topic:
        source = f"{headers['topic']}-{headers['partition']}-{headers['offset']}"
        tally.add_dead_letter(source, headers["reason"])
        return
    value = record.value()
    assert value is not None, "the recommendations topic holds no tombstones"
    answer, source = _decode(value), headers["source"]
    on_answer(tally.add_recommendation(source, answer, judge.rank(answer), appended_ms, now_s))


def _headers(record: Message) -> dict[str, str]:
    """The headers of a record that the worker wrote: all of them text."""
    pairs = record.headers() or []
    assert isinstance(pairs, list)
    return {name: value.decode() for name, value in pairs if isinstance(value, bytes)}


def _starts(settings: WatchSettings) -> list[TopicPartition]:
    """Where to begin in every partition of the three topics that a reader may see."""
    names = (settings.clicks_topic, settings.recommendations_topic, settings.dead_letter_topic)
    topics = existing_topics(AdminClient(confluent_options(settings)), settings, names)
    offset = OFFSET_BEGINNING if settings.from_beginning else OFFSET_END
    return [TopicPartition(name, p, offset) for name, n in topics.items() for p in range(n)]
