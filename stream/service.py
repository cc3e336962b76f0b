"""Start a worker process: read the bundle, check the topics, run."""

import gc
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog
from prometheus_client import REGISTRY, disable_created_metrics

from stream.batch import Planner, Rules
from stream.errors import StreamError
from stream.logs import configure_logging
from stream.metrics import Metrics
from stream.model.models import Models, load_model
from stream.position import BadClickLimit
from stream.settings import WorkerSettings
from stream.transport.faust_app import FaustTransport
from stream.transport.topics import check_topics, largest_click
from stream.web.pages import add_pages, add_resume
from stream.worker import Worker

log = structlog.get_logger(__name__)

SWITCH_S = 0.0002
"""After so long a thread passes the interpreter's lock on to one that waits. With Python's 5 ms
scoring began late and came back late: 6,740 clicks/s of a backlog, and 6,290."""


def run_worker(settings: WorkerSettings) -> int:
    """Serve until a signal; returns the exit code. Raises StreamError before the first click."""
    configure_logging(settings.log_level)
    # In a thread: while C code works in the first one, no signal is answered.
    with ThreadPoolExecutor(1) as preparing:
        model = preparing.submit(load_model, settings.bundle, settings.inference_threads).result()
        if settings.expected_bundle_id not in (None, model.model_id):
            raise StreamError(
                f"{settings.bundle} holds bundle {model.model_id}, but expected_bundle_id is "
                f"{settings.expected_bundle_id}"
            )
        preparing.submit(check_topics, settings).result()
        max_click_bytes = preparing.submit(largest_click, settings).result()
    _check_address(settings)
    # It would be a second series for every counter, which nobody reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # upstream has no types here
    metrics = Metrics(REGISTRY)
    metrics.bundle.info({"bundle_id": model.model_id, "architecture": model.manifest.architecture})
    log.info(
        "starting",
        bundle_id=model.model_id,
        **settings.model_dump(mode="json", exclude={"sasl_password"}),
    )
    limit = BadClickLimit(settings.bad_click_run_limit, settings.bad_click_share_limit)
    rules = Rules.of(model.manifest, limit)
    planner = Planner(Models(model, max_click_bytes), rules, settings.clicks_topic)
    transport = FaustTransport(settings, settings.wiring, partial(check_topics, settings))
    worker = Worker(transport, planner, metrics)
    add_pages(transport.app, worker, metrics.registry)
    add_resume(transport.app, worker)
    # What is there by now stays: no collection need look at it again (it took up to 150 ms).
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_S)
    return transport.run(worker)


def _check_address(settings: WorkerSettings) -> None:
    """Raise StreamError if the pages cannot be served; Faust would print a traceback."""
    try:
        with socket.create_server((settings.web_host, settings.web_port)):
            return
    except OSError as error:
        raise StreamError(
            f"cannot listen on {settings.web_host}:{settings.web_port} (web_host, web_port): "
            f"{error.strerror}; each worker on a host needs its own port"
        ) from error
