"""What has gone in and out so far, counted from the records of the topics: no Kafka, no clock.

The watch view's memory: bounded, whatever the load and however long it runs.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from stream.contract.messages import Item, Recommendation
from stream.counts import QUALITY_K, Found, Quality

T = TypeVar("T")

RECENT_S = 10
"""Rates and latencies are those of so many seconds."""
HISTORY_S = 60
"""Seconds of clicks/s kept for the curve."""
SHOWN_CLICKS = 12
MAX_WAITING = 100_000
MAX_TRAILS = 2_000


@dataclass(frozen=True, slots=True)
class Step:
    """One click of a session and its answer. ``rank`` as ``Judge.rank`` gives it."""

    item_id: str
    outcome: str
    rank: int | None


@dataclass(slots=True)
class SessionView:
    """The last clicks of one session, and its list now."""

    session_id: str
    steps: deque[Step] = field(default_factory=lambda: deque(maxlen=SHOWN_CLICKS))
    n_clicks: int = 0
    items: list[Item] = field(default_factory=list)


@dataclass(slots=True)
class _Second:
    clicks: int = 0
    answers: int = 0
    latencies_ms: list[int] = field(default_factory=list)
    view_ages_ms: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Odd:
    """How many there were of what should not be there, and where the first one was."""

    count: int = 0
    first: str = ""

    def add(self, place: str, count: int = 1) -> None:
        self.first = self.first or place
        self.count += count


class Tally:
    """Counts records as they are read; ``now_s`` of every call is the reader's clock.

    Latency is the append time of the recommendation minus that of its click: two stamps of the
    brokers' clocks, which no clock of the reader and no slow terminal can distort. The commit
    that makes the recommendation visible comes on top.
    """

    def __init__(self) -> None:
        self.clicks = 0
        self.recommendations = 0
        self.dead_letters: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.quality = Quality()
        self.hits: Counter[str] = Counter()  # by the source that brought the clicked item
        self.not_ours = Odd()  # records of the output topics that no worker has written
        self.unreadable = Odd()  # offsets of batches that the Kafka client cannot read
        self._seconds: OrderedDict[int, _Second] = OrderedDict()
        # Clicks without their answer and answers without their click (one consumer reads all
        # topics, in no promised order), by source: the append time; None for a dead letter,
        # which has no latency.
        self._clicked_ms: OrderedDict[str, int] = OrderedDict()
        self._answered_ms: OrderedDict[str, int | None] = OrderedDict()
        self._sessions: OrderedDict[str, SessionView] = OrderedDict()

    def add_click(self, source: str, appended_ms: int, now_s: float) -> None:
        """Count a record of the clicks topic; ``source`` is topic-partition-offset."""
        self.clicks += 1
        self._second(now_s).clicks += 1
        if source not in self._answered_ms:
            _remember(self._clicked_ms, source, appended_ms)
            return
        answered_ms = self._answered_ms.pop(source)
        if answered_ms is not None:
            self._second(now_s).latencies_ms.append(answered_ms - appended_ms)

    def add_recommendation(
        self,
        source: str,
        answer: Recommendation,
        found: Found | None,
        appended_ms: int,
        now_s: float,
    ) -> SessionView:
        """Count a record of the recommendations topic, its click found by the session's ``Judge``.

        Returns its session.
        """
        self.recommendations += 1
        self.outcomes[answer.outcome] += 1
        self._second(now_s).answers += 1
        clicked_ms = self._clicked_ms.pop(source, None)
        if clicked_ms is None:
            _remember(self._answered_ms, source, appended_ms)
        else:
            self._second(now_s).latencies_ms.append(appended_ms - clicked_ms)
        if answer.view_ms is not None:
            age_ms = answer.click.timestamp_ms - answer.view_ms
            self._second(now_s).view_ages_ms.append(age_ms)
        rank = found and found.rank
        if found is not None:
            self.quality.add(found.rank)
            if found.source is not None and found.rank <= QUALITY_K:
                self.hits[found.source] += 1
        session_id = answer.session_id
        session = self._sessions.pop(session_id, None) or SessionView(session_id)
        self._sessions[session_id] = session
        if len(self._sessions) > MAX_TRAILS:
            self._sessions.popitem(last=False)
        session.n_clicks += 1
        session.items = answer.items
        session.steps.append(Step(answer.click.item_id, answer.outcome, rank))
        return session

    def add_dead_letter(self, source: str, reason: str) -> None:
        """Count a record of the dead-letter topic."""
        self.dead_letters[reason] += 1
        if self._clicked_ms.pop(source, None) is None:
            _remember(self._answered_ms, source, None)

    @property
    def waiting(self) -> int:
        """Clicks read whose answer has not been read yet."""
        return len(self._clicked_ms)

    def rates(self, now_s: float) -> tuple[float, float]:
        """Clicks/s and recommendations/s over the last whole seconds."""
        recent = self._recent(now_s)
        n_seconds = max(1, min(RECENT_S, int(now_s) - min(self._seconds, default=int(now_s))))
        n_clicks, n_answers = sum(s.clicks for s in recent), sum(s.answers for s in recent)
        return n_clicks / n_seconds, n_answers / n_seconds

    def latency_ms(self, now_s: float, *quantiles: float) -> list[int] | None:
        """Nearest-rank quantiles over the last whole seconds; None where nothing was answered."""
        return _quantiles((second.latencies_ms for second in self._recent(now_s)), quantiles)

    def view_age_ms(self, now_s: float, *quantiles: float) -> list[int] | None:
        """The same of how far the view was behind the click that it answered; below 0: ahead."""
        return _quantiles((second.view_ages_ms for second in self._recent(now_s)), quantiles)

    def clicks_by_second(self, now_s: float) -> list[int]:
        """Clicks of the last whole seconds, oldest first."""
        end, nothing = int(now_s), _Second()
        return [self._seconds.get(s, nothing).clicks for s in range(end - HISTORY_S, end)]

    def session(self, session_id: str) -> SessionView | None:
        """One session, if it clicked lately."""
        return self._sessions.get(session_id)

    def busiest_session(self) -> SessionView | None:
        """Of the sessions that clicked last, the first with several clicks: one worth a look."""
        newest = islice(reversed(self._sessions.values()), 200)
        return max(newest, key=lambda s: min(s.n_clicks, SHOWN_CLICKS // 2), default=None)

    def _second(self, now_s: float) -> _Second:
        second = self._seconds.setdefault(int(now_s), _Second())
        while len(self._seconds) > HISTORY_S + 1:
            self._seconds.popitem(last=False)
        return second

    def _recent(self, now_s: float) -> list[_Second]:
        end = int(now_s)
        return [self._seconds[s] for s in range(end - RECENT_S, end) if s in self._seconds]


def _quantiles(parts: Iterable[list[int]], quantiles: Iterable[float]) -> list[int] | None:
    values = sorted(value for part in parts for value in part)
    if not values:
        return None
    return [values[min(len(values) - 1, int(q * len(values)))] for q in quantiles]


def _remember(waiting: OrderedDict[str, T], source: str, appended_ms: T) -> None:
    waiting[source] = appended_ms
    if len(waiting) > MAX_WAITING:
        waiting.popitem(last=False)
