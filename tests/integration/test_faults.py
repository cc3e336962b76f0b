"""Exactly once under load: kill -9, SIGTERM, a join and a leave, a paused worker.

Each of these tests also runs with the guard taken out that makes it pass, and must then see the
damage. Then comes one run of each fault of ``make faults`` (of those beside the item processor one
alone), and some of them on the workers of another processor.
"""

import json
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import pytest

from bench.faults.catalogue import FAULTS
from bench.faults.scene import Bundles, run_once
from bench.faults.service import Deployment
from bench.faults.verdict import Verdict, sessions_in_changelog, verdict
from bench.faults.worker_without import SLOW_BATCH
from bench.serving.bundles import even_live, write_tiny_bundle
from deploy.command import DeployError
from deploy.processes import wait_for
from tests.integration.conftest import own_deployment, steady_load

N_CLICKS = 6000
PER_SECOND = 1000.0
BY_CHANCE = pytest.mark.flaky(reruns=2)
"""A worker without its guard must come to harm, but a slow machine spares it now and then."""


@pytest.fixture
def load(deployment: Deployment, request: pytest.FixtureRequest) -> Iterator[threading.Thread]:
    """Clicks at a steady rate, from the moment the thread is started; for six seconds unless the
    test asks for another rate."""
    thread = steady_load(deployment, N_CLICKS, getattr(request, "param", PER_SECOND))
    yield thread
    thread.join(60)


def damaged(guards: tuple[str, ...]) -> AbstractContextManager[None]:
    """Without a guard clicks may stay unanswered: the verdict finds them missing."""
    return suppress(DeployError, AssertionError) if guards else nullcontext()


def in_full_swing(deployment: Deployment, share: float) -> None:
    """Wait until the first worker has answered a share of the load."""
    worker = deployment.workers[0]
    wait_for(
        lambda: worker.metric("recs_batch_clicks_sum") > share * N_CLICKS,
        60,
        f"{share} of the load",
    )


@pytest.mark.parametrize("guards", [(), ("position",)], ids=["whole", "broken"])
def test_kill_9_under_load_is_exact(
    deployment: Deployment, load: threading.Thread, guards: tuple[str, ...]
) -> None:
    worker = deployment.start(*guards)
    load.start()
    in_full_swing(deployment, 0.3)
    worker.end(signal.SIGKILL)
    deployment.start(*guards)
    load.join()
    deployment.wait_until_answered(N_CLICKS)
    found = verdict(deployment)
    assert found.exact != bool(guards), str(found)


@pytest.mark.parametrize("guards", [(), ("restore",)], ids=["whole", "broken"])
def test_sigterm_under_load_is_exact_and_exits_with_0(
    deployment: Deployment, load: threading.Thread, guards: tuple[str, ...]
) -> None:
    worker = deployment.start(*guards)
    load.start()
    in_full_swing(deployment, 0.3)
    worker.end(signal.SIGTERM)
    assert worker.wait_for_exit(30) == 0, worker.log()
    deployment.start(*guards)
    load.join()
    deployment.wait_until_answered(N_CLICKS)
    found = verdict(deployment)
    assert found.exact != bool(guards), str(found)


# For 24 s: on a slow machine a worker takes 8 to start and to join, and the slow batch 9.
@pytest.mark.parametrize("load", [250.0], indirect=True, ids=["250/s"])
@pytest.mark.parametrize(
    "guards", [(), pytest.param(("drain",), marks=BY_CHANCE)], ids=["whole", "broken"]
)
def test_a_worker_that_joins_and_one_that_leaves_are_exact(
    deployment: Deployment, load: threading.Thread, guards: tuple[str, ...]
) -> None:
    first = deployment.start(*guards, "slow_revocation")
    load.start()
    in_full_swing(deployment, 0.1)
    second = deployment.start(*guards)
    wait_for(lambda: second.metric("recs_rebalances_total") >= 1, 60, "partitions that move")
    if guards:
        # Behind the back of the new owner.
        wait_for(lambda: SLOW_BATCH in first.log(), 60, "the slow batch")
    in_full_swing(deployment, 0.4)
    first.end(signal.SIGTERM)
    ended = first.wait_for_exit(30)
    assert guards or ended == 0, first.log()
    load.join()
    with damaged(guards):
        deployment.wait_until_answered(N_CLICKS, 45 if guards else 90)
    assert guards or second.process.poll() is None, second.log()
    found = verdict(deployment)
    assert found.exact != bool(guards), str(found)


@pytest.mark.parametrize(
    ("step", "guards"),
    [
        ("offsets", ()),
        pytest.param("offsets", ("generation",), marks=BY_CHANCE),
        ("records", ()),
        pytest.param("records", ("settling",), marks=BY_CHANCE),
    ],
    ids=["offsets-whole", "offsets-broken", "records-whole", "records-broken"],
)
def test_a_worker_that_sleeps_past_its_session_timeout_writes_nothing_when_it_wakes(
    deployment: Deployment, load: threading.Thread, step: str, guards: tuple[str, ...]
) -> None:
    sleeper = deployment.start(*guards, f"sleep_before_{step}")
    load.start()
    wait_for(lambda: sleeper.is_stopped, 60, "a sleeping worker")
    # Ready once the group has expelled the sleeper. Its transaction is open for ten seconds.
    deployment.start(*guards)
    time.sleep(0.5)
    sleeper.end(signal.SIGCONT)
    load.join()
    with damaged(guards):
        deployment.wait_until_answered(N_CLICKS, 45 if guards else 90)
        sleeper.wait_until_ready()
    assert guards or "transaction_lost" in sleeper.log()
    found = verdict(deployment)
    assert found.exact != bool(guards), str(found)


def test_a_broker_that_restarts_under_load_loses_nothing(tmp_path: Path) -> None:
    with own_deployment(tmp_path) as (broker, deployment):
        load = steady_load(deployment, N_CLICKS, PER_SECOND)
        worker = deployment.start()
        load.start()
        in_full_swing(deployment, 0.2)
        broker.stop()
        broker.start()
        load.join()
        deployment.wait_until_answered(N_CLICKS)
        assert worker.process.poll() is None, worker.log()
        found = verdict(deployment)
    assert found.exact, str(found)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp("bundles")
    first, second = (write_tiny_bundle(folder, k=k, constant=True) for k in (20, 10))
    live = write_tiny_bundle(folder, k=20, constant=True, live=even_live(20))
    return Bundles(first, second, live)


@pytest.mark.parametrize("fault", [name for name, fault in FAULTS.items() if not fault.live])
def test_a_fault_that_hits_leaves_every_click_answered_and_applied_once(
    kafka: str, bundles: Bundles, tmp_path: Path, fault: str
) -> None:
    if FAULTS[fault].disk_mib and os.geteuid():
        pytest.skip("a disk of its own for the broker is a mount, which needs root")
    row = run_once(FAULTS[fault], fault, tmp_path, bundles, shared=kafka)
    assert "error" not in row and row["hit"] and row["exact"], json.dumps(row, indent=1)


def test_an_item_processor_that_is_killed_leaves_every_event_counted_once(
    kafka: str, bundles: Bundles, tmp_path: Path
) -> None:
    row = run_once(FAULTS["kill_items"], "kill_items", tmp_path, bundles, shared=kafka)
    assert "error" not in row and row["hit"] and row["exact"], json.dumps(row, indent=1)


@pytest.mark.parametrize("fault", ["kill", "pause", "two"])
def test_a_second_processor_counts_each_click_once(
    kafka: str, bundles: Bundles, tmp_path: Path, fault: str
) -> None:
    row = run_once(
        FAULTS[fault],
        fault,
        tmp_path,
        bundles,
        shared=kafka,
        module="tests.counting_worker",
        judge=counted,
    )
    assert "error" not in row and row["hit"] and row["exact"], json.dumps(row, indent=1)


def counted(deployment: Deployment) -> Verdict:
    """Compare counts, published and kept, with the clicks of each session."""
    n_clicks: dict[tuple[int, bytes], int] = defaultdict(int)
    for click in deployment.read(deployment.clicks):
        n_clicks[click.partition, click.key or b""] += 1
    published: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for count in deployment.read(deployment.recommendations):
        published[count.partition, count.key or b""].append(int(count.value or b""))
    kept = {name: int(value) for name, value in sessions_in_changelog(deployment).items()}
    assert kept.keys() == n_clicks.keys()
    right = {name: list(range(1, n + 1)) for name, n in n_clicks.items()}
    return Verdict(
        missing=sum(len(set(right[name]) - set(published[name])) for name in right),
        duplicates=sum(len(counts) - len(set(counts)) for counts in published.values()),
        different=sum(published[name] != counts for name, counts in right.items()),
        wrong_states=0,
        over_applied=sum(max(0, kept[name] - n) for name, n in n_clicks.items()),
        under_applied=sum(max(0, n - kept[name]) for name, n in n_clicks.items()),
        state_error=0.0,
        evidence=(*deployment.endings(),),
    )
