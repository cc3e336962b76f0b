"""One run: workers under a steady load, a fault in its middle, and the verdict from the topics."""

import itertools
import shutil
import signal
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import OFFSET_BEGINNING, Consumer, ConsumerGroupState, TopicPartition
from confluent_kafka.admin import AdminClient

from bench.faults.service import ROOT, Deployment, WorkerProcess
from bench.faults.traffic import PATIENT, session_load
from bench.faults.verdict import Verdict, verdict
from bench.measuring import Background
from deploy.broker import EmbeddedKafka
from deploy.command import DeployError
from deploy.processes import wait_for

PARTITIONS = 4
PER_SECOND = 400.0
N_SESSIONS = 1000
"""So that none outgrows its trail: a new bundle then rebuilds the state that it would have made."""
STEP_TIMEOUT_S = 90.0
RUN_ON_S = 2.0
"""How long the load goes on after the fault."""
CONTROL = 0x20
"""The attribute of a batch that holds a transaction's marker (record format 2)."""

T = TypeVar("T")


class Bundles(NamedTuple):
    """What the workers serve, and what a rolling restart brings; all of them count clicks.

    live: served where an item processor runs, too; not every version has such bundles.
    """

    first: Path
    second: Path
    live: Path | None = None


class Watcher(Background):
    """A read_committed reader of what is published that notes when each record arrives."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        super().__init__()
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "nextclick-reader",  # required, never joined
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                **PATIENT,
            }
        )
        tps = [TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(PARTITIONS)]
        self._consumer.assign(tps)
        self.topic = topic
        self.arrivals: list[tuple[int, float]] = []
        """Partition and time.monotonic() of each record."""

    def run(self) -> None:
        while not self.stopped.is_set():
            message = self._consumer.poll(0.2)
            if message is not None and not message.error():  # a broker that is away comes back
                partition = message.partition()
                assert partition is not None
                self.arrivals.append((partition, time.monotonic()))
        self._consumer.close()

    def last_s(self) -> float:
        """When the last record came."""
        return self.arrivals[-1][1] if self.arrivals else 0.0


def gaps(arrivals: Sequence[tuple[int, float]], since_s: float) -> dict[str, float]:
    """The longest time without a record, of those that end after ``since_s``.

    arrivals: partition and time of each record, in order. Returns seconds: ``gap_s`` without any
    record, and ``partition_gap_s`` without one of the partition that waits longest.
    """
    by_partition: dict[int, list[float]] = {}
    for partition, at_s in arrivals:
        by_partition.setdefault(partition, []).append(at_s)
    return {
        "gap_s": _longest([at_s for _, at_s in arrivals], since_s),
        "partition_gap_s": max(_longest(times, since_s) for times in by_partition.values()),
    }


def _longest(times: Sequence[float], since_s: float) -> float:
    found = (b - a for a, b in itertools.pairwise(times) if b > since_s)
    return round(max(found, default=0.0), 3)


def admin_of(deployment: Deployment) -> AdminClient:
    return AdminClient({"bootstrap.servers": deployment.bootstrap_servers, **PATIENT})


@dataclass
class Scene:
    """What a fault acts on. ``broker`` is None where another one than ours serves.

    strikes: the command of the processes that the fault is for; all others go on.
    """

    deployment: Deployment
    bundles: Bundles
    broker: EmbeddedKafka | None
    random: Random
    watcher: Watcher
    admin: AdminClient
    guards: tuple[str, ...] = ()
    strikes: str = "worker"
    asked_to_end: list[WorkerProcess] = field(default_factory=list)
    sent: int = 0
    """Clicks handed to the load's producer."""

    def start(self, n: int = 1, bundle: Path | None = None) -> list[WorkerProcess]:
        """Start processes that the fault strikes, at the same instant, without waiting for them."""
        self.deployment.bundle = bundle or self.deployment.bundle
        return [self._start(self.strikes) for _ in range(n)]

    def start_other(self) -> WorkerProcess:
        """Start the item processor beside struck workers, or a worker beside those struck."""
        return self._start("count" if self.strikes == "worker" else "worker")

    def _start(self, command: str) -> WorkerProcess:
        guards = self.guards if command == self.strikes else ()
        return self.deployment.start(*guards, wait=False, command=command)

    @property
    def running(self) -> list[WorkerProcess]:
        """Of those that the fault strikes."""
        workers = self.deployment.workers
        return [w for w in workers if w.command == self.strikes and w.process.poll() is None]

    def victims(self, n: int = 1) -> list[WorkerProcess]:
        return self.random.sample(self.running, n)

    def end(self, how: signal.Signals, *workers: WorkerProcess) -> None:
        """End workers at the same instant. Raises DeployError if SIGTERM does not end with 0."""
        self.asked_to_end += workers
        for worker in workers:
            worker.end(how)
        for worker in workers:
            code = worker.wait_for_exit()
            if how == signal.SIGTERM and code:
                raise DeployError(f"SIGTERM ended a worker with exit code {code}")

    def wait(self, condition: Callable[[], T], what: str, timeout_s: float = STEP_TIMEOUT_S) -> T:
        """Wait as ``wait_for``; workers that end by themselves are started again meanwhile."""

        def attended() -> T:
            for worker in self.deployment.workers:
                if worker.process.poll() is not None and worker not in self.asked_to_end:
                    self.asked_to_end.append(worker)
                    self._start(worker.command)
            time.sleep(0.1)
            return condition()

        return wait_for(attended, timeout_s, what)

    def owners(self) -> dict[int, str]:
        """The member of the group that owns each partition; empty during a rebalance."""
        deployment = self.deployment
        group, topic = deployment.app, deployment.clicks
        if self.strikes == "count":
            group, topic = f"{deployment.app}-items", deployment.item_events
        try:
            asked = self.admin.describe_consumer_groups([group], request_timeout=3)
            found = asked[group].result(5)
        except Exception:  # a broker that is away, a coordinator that loads
            # A client that has seen its broker restart may time out for ever.
            self.admin = admin_of(self.deployment)
            return {}
        if found.state != ConsumerGroupState.STABLE:
            return {}
        return {
            tp.partition: member.member_id
            for member in found.members
            for tp in member.assignment.topic_partitions
            if tp.topic == topic
        }

    def settled(self, besides: int = 0, before: dict[int, str] | None = None) -> dict[int, str]:
        """Wait until the running workers own everything, ``besides`` of them nothing.

        before: an assignment that must be over.
        """

        def found() -> dict[int, str]:
            owners, n = self.owners(), min(PARTITIONS, len(self.running) - besides)
            whole = len(owners) == PARTITIONS and len(set(owners.values())) == n
            return owners if whole and owners != before else {}

        return self.wait(found, "a group in which every worker owns partitions")

    def moved(self, before: dict[int, str], besides: int = 0) -> int:
        """Wait for the next assignment; returns how many partitions have another owner."""
        after = self.settled(besides, before)
        return sum(after[p] != owner for p, owner in before.items())

    def aborted(self) -> int | None:
        """Markers of aborted transactions in the watched topic's logs, on our own broker."""
        if self.broker is None:
            return None
        logs = self.broker.data_dir.glob(f"log/{self.watcher.topic}-*/*.log")
        return sum(map(abort_markers, logs))

    def clicks(self, enough: threading.Event) -> Iterator[tuple[bytes, bytes]]:
        """The load, until it is enough."""
        seed = self.random.randrange(2**32)
        for click in session_load(10**6, N_SESSIONS, seed=seed):
            if enough.is_set():
                return
            self.sent += 1
            yield click


def abort_markers(path: Path) -> int:
    """How many aborts of transactions a segment of a partition's log notes."""
    log, begin, n = path.read_bytes(), 0, 0
    while begin + 70 <= len(log):
        length, attributes = *struct.unpack_from(">i", log, begin + 8), log[begin + 22]
        if not length:
            break  # preallocated
        # A marker's only record has five bytes, then its key: version and type, 0 for an abort.
        n += bool(attributes & CONTROL) and struct.unpack_from(">h", log, begin + 68)[0] == 0
        begin += 12 + length
    return n


@dataclass(frozen=True)
class Fault:
    """``act`` does it and returns its proof, with ``hit``: whether it did any harm at all."""

    act: Callable[[Scene], dict[str, Any]]
    workers: tuple[int, int] = (1, 3)
    """Fewest and most processes of the kind that it strikes, when it does."""
    strikes: str = "worker"
    """Their command; ``count``: the item processor's."""
    live: bool = False
    """Whether the item processor runs, beside workers that learn from the stream."""
    own_broker: bool = False
    replaces_bundle: bool = False
    disk_mib: int | None = None
    """Size of a disk of its own for the broker's log; needs root."""


def run_once(
    fault: Fault,
    seed: str,
    folder: Path,
    bundles: Bundles,
    *,
    shared: EmbeddedKafka | str | None = None,
    guards: tuple[str, ...] = (),
    checkout: Path = ROOT,
    module: str = "stream",
    judge: Callable[..., Verdict] = verdict,
) -> dict[str, Any]:
    """Run a fault once; ``folder`` gets the logs.

    shared: the broker of several runs, or one's address, for a fault that leaves it alone.
    guards: taken out of every worker. checkout: whose worker runs. module: the worker, and judge:
    what it should have done, of another processor than ours.

    Returns the proof, the verdict and the gaps. What never came about (a worker that does not get
    ready, clicks that stay unanswered) is in ``error``, and the verdict stands all the same.
    """
    with ExitStack() as stack:
        broker: EmbeddedKafka | None
        if fault.own_broker or shared is None:
            broker = stack.enter_context(own_broker(folder / "kafka", fault.disk_mib))
        else:
            broker = shared if isinstance(shared, EmbeddedKafka) else None
        servers = broker.bootstrap_servers if broker else str(shared)
        name = f"faults-{uuid.uuid4().hex[:8]}"
        bundle = bundles.live if fault.live else bundles.first
        if bundle is None:
            raise DeployError(f"{checkout} writes no bundle that learns from the stream")
        deployment = Deployment(servers, name, bundle, folder, folder=checkout, module=module)
        stack.callback(deployment.close)
        deployment.create_topics(partitions=PARTITIONS)
        of_items = fault.strikes == "count"
        published = deployment.item_view if of_items else deployment.recommendations
        watcher = stack.enter_context(Watcher(servers, published))
        scene = Scene(
            deployment,
            bundles,
            broker,
            Random(seed),
            watcher,
            admin_of(deployment),
            guards,
            fault.strikes,
        )
        row = _act(fault, scene, stack.enter_context(ThreadPoolExecutor(1)), judge)
        deployment.close()
        if not fault.own_broker:
            for deleted in scene.admin.delete_topics(deployment.topics).values():
                deleted.result(30)
    return row


def _act(
    fault: Fault, scene: Scene, pool: ThreadPoolExecutor, judge: Callable[..., Verdict]
) -> dict[str, Any]:
    deployment, watcher, bundles = scene.deployment, scene.watcher, scene.bundles
    row: dict[str, Any] = {"workers": scene.random.randint(*fault.workers), "hit": False}
    enough = threading.Event()
    try:
        started = scene.start(row["workers"])
        if fault.live:
            started.append(scene.start_other())
        for worker in started:
            worker.wait_until_ready()
        scene.settled()
        load = pool.submit(deployment.send, scene.clicks(enough), per_second=PER_SECOND)
        began_s = time.monotonic()
        scene.wait(watcher.last_s, "a first answer")
        time.sleep(max(0.0, began_s + scene.random.uniform(2.0, 4.0) - time.monotonic()))
        at_s = time.monotonic()
        row["at_s"] = round(at_s - began_s, 3)
        if fault.strikes == "worker":
            row["unanswered"] = scene.sent - len(watcher.arrivals)
        row |= fault.act(scene)
        row["act_s"] = round(time.monotonic() - at_s, 1)
        time.sleep(RUN_ON_S)
        enough.set()
        row["clicks"] = n_clicks = load.result(STEP_TIMEOUT_S)
        drained = pool.submit(deployment.wait_until_answered, n_clicks, STEP_TIMEOUT_S)
        scene.wait(drained.done, "answers", STEP_TIMEOUT_S + 5)
        drained.result()
        if fault.live:
            drained = pool.submit(deployment.wait_until_counted, STEP_TIMEOUT_S)
            scene.wait(drained.done, "counted item events", STEP_TIMEOUT_S + 5)
            drained.result()
        scene.wait(lambda: time.monotonic() - watcher.last_s() > 0.5, "the reader's last answer")
        row |= gaps(watcher.arrivals, at_s)
    except (DeployError, AssertionError, TimeoutError, subprocess.TimeoutExpired) as error:
        row["error"] = f"{type(error).__name__}: {error}"[-400:]
    finally:
        enough.set()
        pool.shutdown()
    others = {bundles.first, bundles.second} - {deployment.bundle} if fault.replaces_bundle else ()
    found = judge(deployment, *others)
    row |= {"exact": found.exact, **asdict(found), "aborted": scene.aborted()}
    return row


@contextmanager
def own_broker(folder: Path, disk_mib: int | None = None) -> Iterator[EmbeddedKafka]:
    """A broker for one run, its log on a disk of its own (tmpfs) if that has a size."""
    log = folder / "log"
    log.mkdir(parents=True)
    if disk_mib is not None:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={disk_mib}m", "nextclick-faults", str(log)]
        done = subprocess.run(mount, capture_output=True, text=True)
        if done.returncode:
            raise DeployError(f"no disk for the broker: {done.stderr.strip()} (it needs root)")
    try:
        with EmbeddedKafka(folder) as broker:
            yield broker
    finally:
        if disk_mib is not None:
            subprocess.run(["umount", "--lazy", str(log)], check=True)
        shutil.rmtree(log, ignore_errors=True)
