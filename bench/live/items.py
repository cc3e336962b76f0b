"""What counting costs: ``python -m bench.live.items``, which starts no Kafka.

The memory that 100,000 live items take in the item processor and in each worker's view, and the
item processor's time for a click.
"""

import gc
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PositiveInt

from bench.provenance import RESULTS, keep
from bench.serving.workers import memory_mib
from stream.contract.messages import Target, item_events
from stream.contract.records import Record
from stream.items import ItemPlanner, PartitionItems
from stream.live.counts import CLICKED, ItemCounts, steps
from stream.live.global_view import GlobalView
from stream.live.rules import MAX_SUCCESSORS, Rules
from stream.position import BadClickLimit, Position
from train.command import Settings, run_command

BEGIN_MS = 1_790_000_000_000
SUCCESSORS = (10, MAX_SUCCESSORS)
RULES = Rules(3_600_000, 225_000, excludes_seen=False)
SESSION = 5
BATCH = 256
"""Clicks of a worker's batch: their events are one record for each partition."""


class ItemsSettings(Settings):
    """Measure what the item processor and the view of its counts cost."""

    items: PositiveInt = 100_000
    """Items that were clicked lately."""
    clicks: PositiveInt = 50_000
    """Clicks that are counted, in sessions of five, for the time that one takes."""
    out: Path = RESULTS / "live-items.json"
    """File of the result."""


def run(settings: ItemsSettings) -> None:
    # A process for each: memory that another has given back would not be counted.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        rows = [*pool.map(partial(memory, settings.items), SUCCESSORS)]
    figures = {
        "items": settings.items,
        "clicks": settings.clicks,
        "us_a_click": round(us_a_click(settings.items, settings.clicks), 1),
        "rows": rows,
    }
    keep(settings.out, figures)
    print(figures)


def memory(n_items: int, n_successors: int) -> dict[str, Any]:
    """MiB of a table and of a view of items that have so many successors each."""
    before = _memory()
    table = PartitionItems()
    for key, raw in records(n_items, n_successors):
        table.restore(key, raw)
    table.finish_restore()
    after_table = _memory()
    view = GlobalView(RULES)
    view.take((key, bytes(memoryview(raw))) for key, raw in table.states.items())
    after_view = _memory()
    for row in range(n_items):
        view.following(row)
    return {
        "successors": n_successors,
        "bytes_an_item": round(sum(map(len, table.states.values())) / n_items),
        "item_processor_mib": round(after_table - before),
        "view_mib": round(after_view - after_table),
        "view_in_use_mib": round(_memory() - after_table),
    }


def records(n_items: int, n_successors: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and counts of items, each of which was followed by the next ones."""
    for item in range(n_items):
        counts = ItemCounts(RULES, BEGIN_MS)
        counts.count("", CLICKED, BEGIN_MS)
        for n in range(1, n_successors + 1):
            counts.count(_name((item + n) % n_items), 1, BEGIN_MS + n)
        yield _name(item).encode(), counts.encode()


def us_a_click(n_items: int, n_clicks: int) -> float:
    """Microseconds of processor time that the item processor's planner takes for one click."""
    planner = ItemPlanner(RULES, "item-events", BadClickLimit(1000, 0.5))
    table, position = PartitionItems(), Position(0, "")
    items = (np.random.default_rng(0).zipf(1.3, n_clicks) % n_items).tolist()
    spent = 0.0
    for offset, begin in enumerate(range(0, n_clicks, BATCH)):
        events = []
        for n in range(begin, min(begin + BATCH, n_clicks)):
            item, at_ms = _name(items[n]), BEGIN_MS + n
            trail = [_name(other) for other in items[n - n % SESSION : n]]
            events.append((item, item, CLICKED, at_ms))
            events += [(former, to, step, at_ms) for former, to, step in steps(trail, item)]
        ((message),) = item_events(events, 1)
        record = Record(0, offset, BEGIN_MS + n_clicks, None, message.value)
        began = time.process_time()
        plan = planner.plan({0: [record]}, {0: position}, lambda _, key: table.states.get(key))
        planner.advance(plan)
        table.apply(plan.transaction.changelog[0], plan.transaction.positions[0])
        spent += time.process_time() - began
        position = plan.transaction.positions[0]
        assert plan.counts.events == len(events)
        assert plan.transaction.messages[Target.ITEM_VIEW]
    return 1e6 * spent / n_clicks


def _name(item: int) -> str:
    return f"item-{item:06d}"


def _memory() -> float:
    gc.collect()
    return memory_mib(os.getpid())


if __name__ == "__main__":
    sys.exit(run_command(ItemsSettings, run))
