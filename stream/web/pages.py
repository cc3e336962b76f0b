"""The worker's pages on Faust's own web server: /healthz, /ready, /metrics, and one to go on."""

from typing import Any, Protocol

import faust
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

STUCK_AFTER_S = 60.0
"""A batch takes tens of milliseconds, and brokers that are away lose it within half a minute."""

MAX_OFFSET = 2**63 - 1


class Health(Protocol):
    """What the pages ask of a worker (see worker.py)."""

    @property
    def ready(self) -> bool: ...
    @property
    def stuck_s(self) -> float: ...


class Resumable(Protocol):
    """A worker that can let a paused partition go on (see worker.py)."""

    async def resume(
        self, partition: int, excused_until: int, *, pass_over: bool
    ) -> int | None: ...


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


def add_resume(app: faust.App, worker: Resumable) -> None:
    """Register the page that `python -m stream resume` asks."""

    @app.page("/partitions/{partition}/resume")
    class Resume(faust.web.View):
        async def post(self, request: Any, partition: str) -> Any:
            """Go on with a paused partition; 404 where it is not paused here (see resume.py)."""
            asked = request.query
            if not partition.isdecimal() or not asked.get("excused_until", "0").isdecimal():
                return self.json(
                    {"error": "partition and excused_until must be numbers"}, status=400
                )
            offset = await worker.resume(
                int(partition),
                min(int(asked.get("excused_until", 0)), MAX_OFFSET),
                pass_over=asked.get("pass_over") == "true",
            )
            return self.json({"offset": offset}, status=404 if offset is None else 200)
