"""The counting processor as a process, for the fault tests: ``python -m tests.counting_worker``.

It has the topics of a nextclick worker; the counts go where the recommendations would.
"""

import logging
import os
import sys
from functools import partial

from prometheus_client import REGISTRY

from stream.settings import Wiring, WorkerSettings
from stream.transport.faust_app import FaustTransport
from stream.transport.topics import check_topics
from stream.web.pages import add_pages
from tests.counting_processor import COUNTS, CountingProcessor


class CountingWorker(CountingProcessor):
    """What the pages ask, and the end of the process where the transport cannot go on."""

    stuck_s = 0.0

    @property
    def ready(self) -> bool:
        return self.transport.ready

    def fail(self, error: Exception) -> None:
        logging.critical("worker_failed", exc_info=error)
        os._exit(1)


def main() -> int:
    settings = WorkerSettings.model_validate({})
    wiring = Wiring(
        settings.app_id,
        settings.clicks_topic,
        settings.changelog_topic,
        {COUNTS: settings.recommendations_topic},
    )
    transport = FaustTransport(settings, wiring, partial(check_topics, settings))
    worker = CountingWorker(transport)
    add_pages(transport.app, worker, REGISTRY)
    return transport.run(worker)


if __name__ == "__main__":
    sys.exit(main())
