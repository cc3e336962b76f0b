"""Start a worker process: read the bundle, check the topics, patch Faust, run."""

import asyncio
import socket

import faust
import structlog
import uvloop
from prometheus_client import REGISTRY, disable_created_metrics

from stream.errors import StreamError
from stream.logs import configure_logging
from stream.metrics import Metrics
from stream.model.bundle import load_bundle
from stream.model.scorer import OnnxScorer
from stream.settings import WorkerSettings
from stream.transport.patches import install_patches
from stream.transport.topics import check_topics
from stream.web.pages import add_pages
from stream.worker import Worker

log = structlog.get_logger(__name__)


def run_worker(settings: WorkerSettings) -> int:
    """Serve until a signal; returns the exit code. Raises what is wrong with the deployment."""
    configure_logging(settings.log_level)
    install_patches()
    bundle = load_bundle(settings.bundle)
    scorer = OnnxScorer(bundle, settings.inference_threads)
    facts = check_topics(settings)
    _check_address(settings)
    # It would be a second series for every counter, which nobody reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # upstream has no types here
    metrics = Metrics(REGISTRY)
    metrics.bundle.info(
        {"bundle_id": bundle.manifest.bundle_id, "architecture": bundle.manifest.architecture}
    )
    log.info(
        "starting",
        bundle_id=bundle.manifest.bundle_id,
        **settings.model_dump(mode="json", exclude={"sasl_password"}),
    )
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = Worker(settings, bundle, scorer, facts, metrics)
    add_pages(worker, metrics)
    service = faust.Worker(
        worker.app, loop=loop, quiet=True, override_logging=False, redirect_stdouts=False
    )
    service.spinner = None  # it sets the root logger to DEBUG: three log records a message
    try:
        service.execute_from_commandline()
    except SystemExit as ended:
        return int(ended.code or 0)


def _check_address(settings: WorkerSettings) -> None:
    """Raise StreamError where the pages cannot be served; Faust would say so in a traceback."""
    try:
        with socket.create_server((settings.web_host, settings.web_port)):
            return
    except OSError as error:
        raise StreamError(
            f"web_host and web_port are {settings.web_host}:{settings.web_port}, where no server "
            f"can listen ({error.strerror}); each worker on a host needs a port of its own"
        ) from error
