"""The worker's pages: /healthz, /ready and /metrics, on Faust's own web server."""

from typing import Any, Protocol

import faust
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

STUCK_AFTER_S = 60.0
"""A batch takes tens of milliseconds, and brokers that are away lose it within half a minute."""


class Health(Protocol):
    """What the pages ask of a worker (see worker.py)."""

    @property
    def ready(self) -> bool: ...
    @property
    def stuck_s(self) -> float: ...


def add_pages(app: faust.App, worker: Health, registry: CollectorRegistry) -> None:
    """Register the pages with the Faust app."""

    @app.page("/healthz")
    async def healthz(self: Any, request: Any) -> Any:
        """200 while the event loop turns and nothing is stuck: what a liveness probe asks."""
        healthy = worker.stuck_s < STUCK_AFTER_S
        body = {"healthy": healthy, "batch_s": round(worker.stuck_s, 1)}
        return self.json(body, status=200 if healthy else 503)

    @app.page("/ready")
    async def ready(self: Any, request: Any) -> Any:
        """200 while we are a member of the group and all our partitions are restored."""
        return self.json({"ready": worker.ready}, status=200 if worker.ready else 503)

    @app.page("/metrics")
    async def prometheus(self: Any, request: Any) -> Any:
        """Every metric in Prometheus' text format."""
        # As a header: aiohttp refuses a charset in its content_type argument.
        headers = {"Content-Type": CONTENT_TYPE_LATEST}
        return self.bytes(generate_latest(registry), headers=headers)
