"""Which events of the clicks topic are repeats, by the rule of the stream (docs/contract.md)."""

from collections import deque

from stream.contract.click import TRAIL_CLICKS, event_hash

TRAIL_MS = 86_400_000
"""How far behind the watermark an event is remembered."""


class Repeats:
    """Finds the events of one partition whose event_id is in their session's trail.

    The trail is the session's last 50 clicks that are not repeats themselves and not a day older
    than the watermark, the partition's latest timestamp. The stream forgets a session at its idle
    timeout instead, which a collector does not know. All of this follows from the clicks that were
    kept, so it can be restored from them.
    """

    def __init__(self) -> None:
        self._trails: dict[str, deque[tuple[int, int]]] = {}
        self._watermark_ms = 0

    def keep(self, session_id: str, event_id: str | None, timestamp_ms: int) -> bool:
        """Add a click to its session's trail unless it is a repeat; returns whether it was not."""
        trail = self._trails.get(session_id)
        if trail is None:
            trail = self._trails[session_id] = deque(maxlen=TRAIL_CLICKS)
        event = event_hash(event_id)
        oldest_ms = self._watermark_ms - TRAIL_MS
        if event and any(known == event and at >= oldest_ms for known, at in trail):
            return False
        trail.append((event, timestamp_ms))
        self._watermark_ms = max(self._watermark_ms, timestamp_ms)
        return True

    def forget(self) -> None:
        """Free the memory of sessions in which no repeat can be found any more."""
        oldest_ms = self._watermark_ms - TRAIL_MS
        self._trails = {
            session: trail
            for session, trail in self._trails.items()
            if any(at >= oldest_ms for _, at in trail)
        }
