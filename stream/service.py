"""Start a worker process: read the bundle, check the topics, run."""

import gc
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import structlog
from prometheus_client import REGISTRY, disable_created_metrics

from stream.batch import Planner, Rules
from stream.errors import StreamError
from stream.items import ItemPlanner
from stream.logs import configure_logging
from stream.metrics import EngineMetrics, ItemMetrics, Metrics
from stream.model.bundle import Manifest, load_bundle
from stream.model.models import Models, load_model
from stream.position import BadClickLimit
from stream.settings import CountSettings, ServiceSettings, WorkerSettings
from stream.transport.faust_app import FaustTransport
from stream.transport.topics import check_item_topics, check_topics, largest_click, n_partitions
from stream.transport.view_reader import ViewReader
from stream.web.pages import add_pages, add_resume
from stream.worker import Worker

log = structlog.get_logger(__name__)

SWITCH_S = 0.0002
"""After so long a thread passes the interpreter's lock on to one that waits. With Python's 5 ms
scoring began late and came back late: 6,740 clicks/s of a backlog, and 6,290."""

VIEW_S = 60.0
"""So long a start waits for the view: 100 MB of it are 100,000 items."""


def run_worker(settings: WorkerSettings) -> int:
    """Serve until a signal; returns the exit code. Raises StreamError before the first click."""
    _begin(settings)
    # In a thread: while C code works in the first one, no signal is answered.
    with ThreadPoolExecutor(1) as preparing:
        model = preparing.submit(load_model, settings.bundle, settings.inference_threads).result()
        _check_bundle(settings, model.manifest)
        wiring, check = settings.wiring, partial(check_topics, settings)
        preparing.submit(check).result()
        max_click_bytes = preparing.submit(largest_click, settings).result()
        n_item_partitions = None
        if model.blender is not None:
            wiring, check = settings.live_wiring, partial(_check_live_topics, settings)
            preparing.submit(check_item_topics, settings).result()
            n_item_partitions = preparing.submit(_n_item_partitions, settings).result()
            reader = ViewReader(settings, settings.item_view_topic)
            reader.start()
            model.blender.changes = reader.changes
            model.blender.seen = settings.seen_items or model.blender.seen
            # Before any click: else the first lists would know nothing of the others'.
            if not preparing.submit(reader.wait_until_read, VIEW_S).result():
                log.warning("view_incomplete", topic=settings.item_view_topic, waited_s=VIEW_S)
    metrics = Metrics(REGISTRY)
    metrics.view = model.blender.view if model.blender else None
    metrics.bundle.info(
        {
            "bundle_id": model.model_id,
            "architecture": model.manifest.architecture,
            "seen_items": model.blender.seen if model.blender else "allow",
        }
    )
    if settings.seen_items and model.blender is None:
        log.warning("seen_items_ignored", detail="the bundle's lists are the network's alone")
    rules = Rules.of(model.manifest, _limit(settings))
    models = Models(model, max_click_bytes)
    planner = Planner(models, rules, settings.clicks_topic, n_item_partitions)
    transport = FaustTransport(settings, wiring, check)
    worker = Worker(transport, planner, metrics)
    return _run(settings, model.model_id, transport, worker, metrics)


def run_counting(settings: CountSettings) -> int:
    """Count items until a signal; returns the exit code. Raises StreamError before it begins."""
    _begin(settings)
    with ThreadPoolExecutor(1) as preparing:
        manifest = preparing.submit(load_bundle, settings.bundle).result().manifest
        _check_bundle(settings, manifest)
        if manifest.live is None:
            raise StreamError(
                f"{settings.bundle} holds bundle {manifest.bundle_id}, whose lists are the "
                "network's alone: there is nothing to count for them"
            )
        preparing.submit(check_item_topics, settings).result()
    metrics = ItemMetrics(REGISTRY)
    wiring = settings.items_wiring
    planner = ItemPlanner(manifest.live.rules, wiring.input, _limit(settings))
    transport = FaustTransport(settings, wiring, partial(check_item_topics, settings))
    worker = Worker(transport, planner, metrics)
    return _run(settings, manifest.bundle_id, transport, worker, metrics)


def _begin(settings: ServiceSettings) -> None:
    configure_logging(settings.log_level)
    # It would be a second series for every counter, which nobody reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # upstream has no types here


def _check_live_topics(settings: WorkerSettings) -> str:
    """What a worker cannot do without: a view that is gone it keeps as it knows it."""
    _n_item_partitions(settings)
    return check_topics(settings)


def _n_item_partitions(settings: WorkerSettings) -> int:
    (n_found,) = n_partitions(settings, [settings.item_events_topic]).values()
    return n_found


def _check_bundle(settings: ServiceSettings, manifest: Manifest) -> None:
    if settings.expected_bundle_id not in (None, manifest.bundle_id):
        raise StreamError(
            f"{settings.bundle} holds bundle {manifest.bundle_id}, but expected_bundle_id is "
            f"{settings.expected_bundle_id}"
        )


def _limit(settings: ServiceSettings) -> BadClickLimit:
    return BadClickLimit(settings.bad_click_run_limit, settings.bad_click_share_limit)


def _run(
    settings: ServiceSettings,
    bundle_id: str,
    transport: FaustTransport,
    worker: Worker[Any],
    metrics: EngineMetrics,
) -> int:
    _check_address(settings)
    shown = settings.model_dump(mode="json", exclude={"sasl_password"})
    log.info("starting", bundle_id=bundle_id, **shown)
    add_pages(transport.app, worker, metrics.registry)
    add_resume(transport.app, worker)
    # What is there by now stays: no collection need look at it again (it took up to 150 ms).
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_S)
    return transport.run(worker)


def _check_address(settings: ServiceSettings) -> None:
    """Raise StreamError if the pages cannot be served; Faust would print a traceback."""
    try:
        with socket.create_server((settings.web_host, settings.web_port)):
            return
    except OSError as error:
        raise StreamError(
            f"cannot listen on {settings.web_host}:{settings.web_port} (web_host, web_port): "
            f"{error.strerror}; each worker on a host needs its own port"
        ) from error
