"""``python -m stream watch``: what goes in and out, read from the topics as any reader would.

Redrawn in a terminal; elsewhere a line every few seconds. It joins no consumer group, commits
nothing: looking changes nothing.
"""

import signal
import sys
import threading
import time
from collections import deque
from contextlib import nullcontext

import msgspec
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, Message, TopicPartition
from rich.live import Live

from stream.contract.messages import Recommendation
from stream.settings import WatchSettings
from stream.transport.clients import confluent_options
from stream.transport.topics import n_partitions
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
    ended = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: ended.set())
    # The last thing librdkafka complained of, until records come again.
    trouble: deque[str] = deque(maxlen=1)
    consumer = Consumer(
        confluent_options(settings)
        | {
            "group.id": f"{settings.app_id}-watch",  # asked for, never joined: assign, no commit
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "error_cb": lambda error: trouble.append(error.str()),
            "log_level": 2,  # what error_cb tells would also tear the view as lines on stderr
        }
    )
    try:
        consumer.assign(_starts(settings))
        tally, judge = Tally(), Judge(settings.idle_timeout_s, MAX_JUDGED_SESSIONS)
        live = Live(auto_refresh=False, vertical_overflow="crop") if sys.stdout.isatty() else None
        shown, shown_since_s = settings.session, 0.0
        refreshed_s = time.monotonic()
        with live or nullcontext():
            while not ended.is_set():
                record = consumer.poll(REDRAW_S)
                now_s = time.monotonic()
                if record is not None and record.error() is None:
                    trouble.clear()
                    session = _count(settings, tally, judge, record, now_s)
                    if session and not live and session.session_id == settings.session:
                        print(session_line(session), flush=True)
                if now_s - refreshed_s < (REDRAW_S if live else LINE_EVERY_S):
                    continue
                refreshed_s = now_s
                complaint = trouble[0] if trouble else ""
                if not live:
                    print(summary_line(tally, now_s, complaint), flush=True)
                    continue
                if settings.session is None and now_s - shown_since_s > SHOW_SESSION_S:
                    busiest = tally.busiest_session()
                    shown, shown_since_s = busiest.session_id if busiest else None, now_s
                session = tally.session(shown) if shown is not None else None
                live.update(draw(settings, tally, session, now_s, complaint), refresh=True)
    finally:
        consumer.close()


def _count(
    settings: WatchSettings, tally: Tally, judge: Judge, record: Message, now_s: float
) -> SessionView | None:
    """Count one record; returns the session that a recommendation answers."""
    topic, appended_ms = record.topic(), record.timestamp()[1]
    if topic == settings.clicks_topic:
        tally.add_click(f"{topic}-{record.partition()}-{record.offset()}", appended_ms, now_s)
        return None
    pairs = record.headers() or []
    assert isinstance(pairs, list)
    # A dead letter has its click's own headers, which may be any bytes; ours are the last.
    headers = {n: v.decode(errors="replace") for n, v in pairs if isinstance(v, bytes)}
    if topic == settings.dead_letter_topic:
        source = f"{headers['topic']}-{headers['partition']}-{headers['offset']}"
        tally.add_dead_letter(source, headers["reason"])
        return None
    value = record.value()
    assert value is not None, "the recommendations topic holds no tombstones"
    answer = _decode(value)
    return tally.add_recommendation(
        headers["source"], answer, judge.rank(answer), appended_ms, now_s
    )


def _starts(settings: WatchSettings) -> list[TopicPartition]:
    """Where to begin in every partition of the three topics that a reader may see."""
    names = (settings.clicks_topic, settings.recommendations_topic, settings.dead_letter_topic)
    topics = n_partitions(settings, names)
    offset = OFFSET_BEGINNING if settings.from_beginning else OFFSET_END
    return [TopicPartition(name, p, offset) for name, n in topics.items() for p in range(n)]
