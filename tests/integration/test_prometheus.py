"""A real Prometheus scrapes real processes under load, and nothing on the dashboard is empty."""

import contextlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import Producer

from bench.serving.bundles import even_live, write_tiny_bundle
from deploy.broker import free_port
from deploy.grafana.dashboard import OUTPUT
from deploy.processes import wait_for

PROMETHEUS_FOLDER = Path("deploy/prometheus").resolve()
N_ITEMS = 50


@dataclass(frozen=True, slots=True)
class Server:
    """A running Prometheus, asked over its HTTP interface."""

    url: str
    silent: str
    """A worker that discovery knows and nobody is."""

    def api(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, query: str) -> list[float]:
        """The finite values of an instant query, one a series."""
        series = self.api("query", query=query)["result"]
        return [value for s in series if math.isfinite(value := float(s["value"][1]))]


@pytest.fixture(scope="module")
def server(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Prometheus over two workers and the item processor, with clicks of every kind flowing."""
    if shutil.which("prometheus") is None:
        reason = "no prometheus server is installed (apt-get install prometheus)"
        if os.environ.get("NEXTCLICK_REQUIRE_PROMETHEUS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("prometheus")
    name = f"prometheus-{uuid.uuid4().hex[:8]}"
    topics = {
        "NEXTCLICK_BOOTSTRAP_SERVERS": kafka,
        "NEXTCLICK_APP_ID": name,
        "NEXTCLICK_CLICKS_TOPIC": f"{name}-clicks",
        "NEXTCLICK_RECOMMENDATIONS_TOPIC": f"{name}-recommendations",
        "NEXTCLICK_DEAD_LETTER_TOPIC": f"{name}-dead-letter",
        "NEXTCLICK_BUNDLE": str(
            write_tiny_bundle(folder, n_items=N_ITEMS, k=20, live=even_live(40, bias=0.5))
        ),
    }
    environment = os.environ | topics
    stream = [sys.executable, "-m", "stream"]
    subprocess.run([*stream, "topics", "create"], env=environment, check=True, timeout=60)
    # One after the other: the second worker makes the first one restore again.
    processes = [(free_port(), "count", "items"), *((free_port(), "worker", "recs") for _ in "ab")]
    with contextlib.ExitStack() as stack:
        (items, *workers) = [f"127.0.0.1:{port}" for port, *_ in processes]
        silent = f"127.0.0.1:{free_port()}"
        targets = {"nextclick": [*workers, silent], "nextclick-items": [items]}
        result = Server(stack.enter_context(prometheus(folder, targets)), silent)
        stack.enter_context(load(kafka, topics["NEXTCLICK_CLICKS_TOPIC"]))
        # A starved broker that has just made topics may answer nobody for a while.
        check = partial(subprocess.run, [*stream, "topics", "check"], env=environment, timeout=60)
        wait_for(lambda: check(capture_output=True).returncode == 0, 150, "an answer")
        for port, command, prefix in processes:
            log = stack.enter_context((folder / f"{command}-{port}.log").open("wb"))
            words = [*stream, command, "--web-port", str(port)]
            started = stack.enter_context(process(words, log, environment))
            is_ready = f'{prefix}_ready{{instance="127.0.0.1:{port}"}} == 1'
            wait_for(partial(serves, result, started, is_ready, Path(log.name)), 60)
            if command == "count":
                # Prometheus may have missed its first restore, at the start. Another one comes,
                # and leaves its partitions to it.
                words[-1] = str(free_port())
                with process(words, log, environment) as other:
                    wait_for(partial(is_member, other, words[-1]), 60, "another item processor")
        yield result


def is_member(process: "subprocess.Popen[bytes]", port: str) -> bool:
    """Whether this process is ready."""
    assert process.poll() is None, "it has ended"
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as page:
            return bool(page.status == 200)
    except OSError:
        return False


def serves(server: Server, process: "subprocess.Popen[bytes]", is_ready: str, log: Path) -> bool:
    """Whether Prometheus has seen this process ready; fails with its log when it has ended."""
    if process.poll() is not None:
        pytest.fail(f"it exited with code {process.returncode}: {log.read_text()[-2000:]}")
    return bool(server.values(is_ready))


@contextlib.contextmanager
def process(
    command: list[str], log: Any, environment: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    running = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


@contextlib.contextmanager
def prometheus(folder: Path, targets: dict[str, list[str]]) -> Iterator[str]:
    """Prometheus with the configuration we ship; only how processes are found, and how often they
    are asked, is the test's. targets: by job."""
    config = yaml.safe_load((PROMETHEUS_FOLDER / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS_FOLDER / name) for name in config["rule_files"]]
    for job in config["scrape_configs"]:
        assert job.pop("dns_sd_configs")
        job["static_configs"] = [{"targets": targets.pop(job["job_name"])}]
    assert not targets
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    port = free_port()
    command = ["prometheus", f"--config.file={path}", f"--web.listen-address=127.0.0.1:{port}"]
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with (
        (folder / "prometheus.log").open("wb") as log,
        process([*command, f"--storage.tsdb.path={folder / 'data'}"], log),
    ):
        wait_for(ready, 30, "Prometheus")
        yield url


@contextlib.contextmanager
def load(bootstrap_servers: str, topic: str) -> Iterator[None]:
    """About 200 clicks a second of every kind, while the block runs."""
    producer = Producer({"bootstrap.servers": bootstrap_servers, "partitioner": "murmur2_random"})
    ended = threading.Event()

    def produce() -> None:
        for n in itertools.count():
            session_id = f"session-{n % 97}"
            # Every session walks through the items; one click in 20 is of an unknown item, one
            # in 20 repeats its event, one in 20 is late, one in 50 is no JSON.
            click = {
                "session_id": session_id,
                "item_id": "unheard-of" if n % 20 == 7 else f"item-{n % N_ITEMS}",
                "timestamp_ms": int(time.time() * 1000) - (5_000 if n % 20 == 9 else 0),
                "event_id": str(n - 97 if n % 20 == 3 else n),
            }
            value = b"{" if n % 50 == 13 else json.dumps(click).encode()
            producer.produce(topic, value, session_id)
            producer.poll(0)
            if ended.wait(0.005):
                return

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        producer.flush(10)


def dashboard_queries() -> list[tuple[str, str]]:
    panels = json.loads(OUTPUT.read_text())["panels"]
    return [(p["title"], t["expr"]) for p in panels for t in p.get("targets", [])]


@pytest.mark.parametrize(("title", "query"), dashboard_queries())
def test_every_query_of_the_dashboard_returns_data(server: Server, title: str, query: str) -> None:
    assert wait_for(lambda: server.values(query), 60, f"data for {title}: {query}")


def recorded() -> list[str]:
    groups = yaml.safe_load((PROMETHEUS_FOLDER / "recording.yaml").read_text())["groups"]
    return [rule["record"] for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("name", recorded())
def test_every_recording_rule_returns_data(server: Server, name: str) -> None:
    assert wait_for(lambda: server.values(name), 60, name)


def test_every_rule_evaluates_without_error(server: Server) -> None:
    def health() -> dict[str, str]:
        groups = server.api("rules")["groups"]
        found = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        return {} if "unknown" in found.values() else found

    found = wait_for(health, 30, "an evaluation of every rule")
    assert set(recorded()) < set(found)
    assert set(found.values()) == {"ok"}


@pytest.mark.parametrize(
    ("query", "low", "high"),
    [
        # What the load is made of comes out of the rules, within the noise of a minute.
        ("nextclick:recs_clicks:rate1m + nextclick:recs_rejected_clicks:rate1m", 20, 250),
        ("nextclick:recs_rejected_clicks:share5m", 0.01, 0.03),
        ("nextclick:recs_latency_seconds:p50_1m", 0.001, 5.0),
        ("nextclick:recs_live_recall_at_20:ratio15m", 0.05, 0.95),
        ("count(recs_ready == 1)", 2, 2),
        ("nextclick:recs_part_recall_at_20:ratio1h{part='published'}", 0.05, 1.0),
        ("sum(rate(items_events_total[1m])) / sum(rate(recs_clicks_total[1m]))", 2.0, 8.0),
        # With the unknown item and without item-13, whose clicks are no JSON.
        ("recs_view_items", N_ITEMS, N_ITEMS),
        ("recs_view_age_seconds", -5.0, 5.0),
        ("count(items_ready == 1)", 1, 1),
        ("sum(recs_live_sessions)", 97, 97),
    ],
)
def test_the_figures_are_those_of_the_load(
    server: Server, query: str, low: float, high: float
) -> None:
    wait_for(lambda: all(low <= v <= high for v in server.values(query) or [math.nan]), 90, query)


def test_a_worker_that_does_not_answer_raises_its_alert_and_the_others_do_not(
    server: Server,
) -> None:
    def down() -> set[str]:
        alerts = server.api("query", query='ALERTS{alertname="WorkerDown"}')["result"]
        return {alert["metric"]["instance"] for alert in alerts}

    assert wait_for(down, 30, "the alert WorkerDown") == {server.silent}
