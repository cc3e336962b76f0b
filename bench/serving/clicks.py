"""The clicks that every contender answers: many open sessions, each a few clicks long."""

from random import Random

import msgspec

OPEN_SESSIONS = 10_000
"""As many as at 1,000 clicks/s with ten seconds between a visitor's clicks."""
LONGEST_SESSION = 50


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
        """Return the next click's key and value."""
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
