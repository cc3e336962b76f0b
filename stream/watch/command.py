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

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    Message,
    TopicPartition,
)
from rich.live import Live

from stream.contract.records import Target
from stream.settings import WatchSettings
from stream.transport.clients import confluent_options
from stream.transport.fetched import Fetched, record_of
from stream.transport.topics import n_partitions
from stream.transport.unreadable import BATCH_ERRORS, STATISTICS_MS
from stream.watch.judge import Judge
from stream.watch.ours import Answer, DeadLetter, read_ours
from stream.watch.screen import draw, session_line, summary_line
from stream.watch.skips import BatchAt, Skips
from stream.watch.tally import SessionView, Tally

REDRAW_S = 0.25
LINE_EVERY_S = 5.0
SHOW_SESSION_S = 5.0
MAX_JUDGED_SESSIONS = 100_000


def watch(settings: WatchSettings, batch_at: BatchAt) -> None:
    """Show the topics until SIGINT or SIGTERM. Raises StreamError where there is nothing to see."""
    ended = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: ended.set())
    # The last thing librdkafka complained of, until records come again.
    trouble: deque[str] = deque(maxlen=1)
    names = (settings.clicks_topic, settings.recommendations_topic, settings.dead_letter_topic)
    partitions = {topic: range(n) for topic, n in n_partitions(settings, names).items()}
    skips = Skips(partitions, batch_at)
    consumer = Consumer(
        confluent_options(settings)
        | {
            "group.id": f"{settings.app_id}-watch",  # asked for, never joined: assign, no commit
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "error_cb": lambda error: trouble.append(error.str()),
            "statistics.interval.ms": STATISTICS_MS,
            "stats_cb": skips.on_statistics,
            "log_level": 2,  # what error_cb tells would also tear the view as lines on stderr
        }
    )
    try:
        # Where a reader that comes now may begin in every partition.
        start = OFFSET_BEGINNING if settings.from_beginning else OFFSET_END
        places = [TopicPartition(topic, p, start) for topic, ps in partitions.items() for p in ps]
        consumer.assign(places)
        tally, judge = Tally(), Judge(settings.idle_timeout_s, MAX_JUDGED_SESSIONS)
        live = Live(auto_refresh=False, vertical_overflow="crop") if sys.stdout.isatty() else None
        shown, shown_since_s = settings.session, 0.0
        refreshed_s = time.monotonic()
        with live or nullcontext():
            while not ended.is_set():
                message = consumer.poll(0)
                if message is None:
                    for place in skips.found():
                        _skip(consumer, tally, *place)
                    message = consumer.poll(REDRAW_S)
                now_s = time.monotonic()
                error = None if message is None else message.error()
                if message is not None and error is None:
                    trouble.clear()
                    session = _count(settings, tally, judge, message, now_s)
                    if session and not live and session.session_id == settings.session:
                        print(session_line(session), flush=True)
                elif error is not None and error.code() in BATCH_ERRORS:
                    topic, partition, offset = _place_of(message)
                    if batch := batch_at(topic, partition, offset):
                        _skip(consumer, tally, topic, partition, batch)
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


def _skip(consumer: Consumer, tally: Tally, topic: str, partition: int, batch: range) -> None:
    """Go on behind a batch that cannot be read."""
    consumer.seek(TopicPartition(topic, partition, batch.stop))
    tally.unreadable.add(f"{topic}-{partition} offset {batch.start}", len(batch))


def _place_of(message: Fetched) -> tuple[str, int, int]:
    return message.topic(), message.partition(), message.offset()


def _count(
    settings: WatchSettings, tally: Tally, judge: Judge, message: Message, now_s: float
) -> SessionView | None:
    """Count one record; returns the session that a recommendation answers."""
    topic, record = message.topic(), record_of(message)
    if topic == settings.clicks_topic:
        source = f"{topic}-{record.partition}-{record.offset}"
        tally.add_click(source, record.timestamp_ms, now_s)
        return None
    is_letter = topic == settings.dead_letter_topic
    match read_ours(record, Target.DEAD_LETTERS if is_letter else Target.RECOMMENDATIONS):
        case DeadLetter(clicks_topic, partition, offset, reason):
            tally.add_dead_letter(f"{clicks_topic}-{partition}-{offset}", reason)
        case Answer(source, answer):
            found = judge.find(answer)
            return tally.add_recommendation(source, answer, found, record.timestamp_ms, now_s)
        case None:
            tally.not_ours.add(f"{topic}-{record.partition} offset {record.offset}")
    return None
