"""What the stream teaches comes back in the lists, through real processes."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from bench.faults.service import Deployment
from bench.faults.traffic import LOG_BEGIN_MS, click
from bench.serving.bundles import write_tiny_bundle
from deploy.processes import wait_for
from stream.contract.messages import Recommendation
from stream.live.rules import PREFIXES, Rules
from stream.model.bundle import Live

SECOND_MS = 1000
RULES = Rules(3_600_000, excludes_seen=False)
LIVE = Live(3600, False, 20, 0.0, [[1.0] * (len(RULES.sources) + 1)] * PREFIXES)


@pytest.fixture
def live(kafka: str, fresh_name: Callable[[str], str], tmp_path: Path) -> Iterator[Deployment]:
    """As ``deployment``, with a bundle that learns from the stream."""
    bundle = write_tiny_bundle(tmp_path, n_items=50, hidden_size=8, k=20, live=LIVE)
    deployment = Deployment(kafka, fresh_name("app"), bundle, tmp_path)
    deployment.create_topics()
    yield deployment
    deployment.close()


def answers(deployment: Deployment, session: str) -> list[Recommendation]:
    found = deployment.read(deployment.recommendations)
    return [
        msgspec.json.decode(r.value or b"", type=Recommendation)
        for r in found
        if r.key == session.encode()
    ]


def test_an_item_that_is_five_seconds_old_is_in_the_list_of_another_workers_session(
    live: Deployment,
) -> None:
    workers = [live.start(), live.start()]
    live.start(command="count")
    wait_for(
        lambda: len({p.address for p in live.positions().values() if p.address}) == 2,
        60,
        "two owners",
    )
    owners = {p: position.address for p, position in live.positions().items()}
    there = next(iter(owners))
    elsewhere = next(p for p in owners if owners[p] != owners[there])
    now_ms = LOG_BEGIN_MS
    began = time.monotonic()
    # Somebody clicks a known item and then one that no network has seen.
    first = [("a", "item-7"), ("a", "fresh"), ("b", "item-7"), ("b", "fresh")]
    live.send(
        [(s.encode(), click(s, item, now_ms + n)) for n, (s, item) in enumerate(first)],
        partition=there,
    )
    live.wait_until_answered(len(first))
    n_sent = len(first)
    while True:
        n_sent += 1
        session = f"reader-{n_sent}"
        at_ms = now_ms + int(1000 * (time.monotonic() - began))
        live.send([(session.encode(), click(session, "item-7", at_ms))], partition=elsewhere)
        live.wait_until_answered(n_sent)
        (answer,) = answers(live, session)
        found = {item.item_id: item.source for item in answer.items}
        if "fresh" in found:
            break
        assert time.monotonic() - began < 60, "a fresh item never came into a list"
    took_s = time.monotonic() - began
    assert found["fresh"] == "transitions"
    assert answer.outcome == "model"
    assert answer.view_ms is not None
    assert len(answer.items) == 20
    # And who clicks it is answered from what came before and after it.
    live.send([(b"c", click("c", "fresh", now_ms + 60_000))], partition=elsewhere)
    live.wait_until_answered(n_sent + 1)
    (answer,) = answers(live, "c")
    assert answer.outcome == "live"
    assert "item-7" in {item.item_id for item in answer.items if item.source == "transitions"}
    assert took_s < 20, "a second of batches and two of this test's looks"
    assert all(worker.process.poll() is None for worker in workers)
