"""How long a worker's event loop holds everybody up, seen from outside: its pages answer late."""

import http.client
import time
from typing import NamedTuple

import numpy as np

from bench.measuring import Background

EVERY_S = 0.005
TOO_LONG_MS = 50.0


class Answer(NamedTuple):
    """When a page was asked for (``time.monotonic``), and how long the answer took."""

    at_s: float
    ms: float


class Pauses(Background):
    """Asks for a worker's /healthz every 5 ms until it is stopped; nobody there is no answer."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self.answers: list[Answer] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self.stopped.is_set():
            began = time.monotonic()
            try:
                connection.request("GET", "/healthz")
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()
            else:
                self.answers.append(Answer(began, 1000 * (time.monotonic() - began)))
            self.stopped.wait(max(0.0, began + EVERY_S - time.monotonic()))

    def since(self, began_s: float) -> dict[str, float]:
        """Figures of the answers to what was asked for since then."""
        return figures([answer.ms for answer in self.answers if answer.at_s >= began_s])


def figures(ms: list[float]) -> dict[str, float]:
    """The longest answer, p99 and median in milliseconds, and how many took too long."""
    if not ms:
        return {"answers": 0}
    median, p99, longest = np.quantile(ms, (0.5, 0.99, 1.0)).round(1).tolist()
    too_long = sum(one > TOO_LONG_MS for one in ms)
    return {"answers": len(ms), "median_ms": median, "p99_ms": p99} | {
        "longest_ms": longest,
        "over_50_ms": too_long,
    }
