"""The images hold what they must and nothing else, and the compose file names real settings."""

import fnmatch
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.broker import KAFKA_VERSION
from deploy.command import DeployError
from deploy.images import run
from stream.settings import (
    CountSettings,
    KafkaSettings,
    ServiceSettings,
    TopicsSettings,
    WorkerSettings,
)

DEPLOY = Path("deploy")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def pins(lock: str) -> set[str]:
    """The pinned requirements of a lock file, markers included: ``name==version ; marker``."""
    return set(
        re.findall(r"^([a-z0-9._-]+==[^\\\n]+?) *\\?$", (DEPLOY / lock).read_text(), re.MULTILINE)
    )


def names(requirements: set[str]) -> set[str]:
    return {re.split(r"[=<>!;\[ ]", requirement, maxsplit=1)[0] for requirement in requirements}


@pytest.mark.parametrize(
    ("lock", "extras"), [("stream.lock", {"stream"}), ("train.lock", {"train"})]
)
def test_a_lock_pins_what_its_image_needs_as_the_whole_lock_does(
    lock: str, extras: set[str]
) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    needed = set(project["dependencies"])
    for extra in extras:
        needed |= set(project["optional-dependencies"][extra])
    assert names(needed) <= names(pins(lock))
    assert pins(lock) <= pins("requirements.lock"), "run make lock"


def test_every_pin_has_a_hash() -> None:
    for lock in ("stream.lock", "train.lock"):
        text = (DEPLOY / lock).read_text()
        blocks = re.split(r"^(?=[a-z0-9._-]+==)", text, flags=re.MULTILINE)[1:]
        assert len(blocks) == len(pins(lock))
        assert all("--hash=sha256:" in block for block in blocks)


def test_the_workers_image_has_nothing_of_training() -> None:
    assert names(pins("stream.lock")).isdisjoint({"torch", "onnx", "onnxscript", "polars"})
    stages = re.split(r"^FROM ", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    (stream,) = [stage for stage in stages if stage.startswith("${BASE} AS stream\n")]
    assert re.findall(r"^COPY (\S+)", stream, re.MULTILINE) == ["deploy/stream.lock", "stream"]


def test_the_training_image_has_nothing_of_serving() -> None:
    serving = {"faust-streaming", "mode-streaming", "aiokafka", "uvloop", "prometheus-client"}
    assert names(pins("train.lock")).isdisjoint(serving)
    # import-linter holds that train and export need none of it.
    linter = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["importlinter"]
    sources = ["train", "export"]
    (contract,) = [c for c in linter["contracts"] if c.get("source_modules") == sources]
    assert set(contract["forbidden_modules"]) >= {"faust", "mode", "aiokafka", "uvloop"}


def test_the_engine_is_sent_what_the_dockerfile_copies_and_no_more() -> None:
    lines = Path(".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in lines if line.startswith("!")}
    assert next(line for line in lines if not line.startswith(("#", "!"))) == "*"
    copied = re.findall(r"^COPY (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert let_through == set(copied)
    assert any(fnmatch.fnmatch("stream/__pycache__", line) for line in lines)


@pytest.mark.parametrize(
    ("service", "settings"),
    [("worker", WorkerSettings), ("items", CountSettings), ("topics", TopicsSettings)],
)
def test_the_compose_file_sets_settings_that_exist(
    service: str, settings: type[KafkaSettings]
) -> None:
    # A misspelt variable is no error at the start: nothing else would find it.
    known = {f"NEXTCLICK_{name.upper()}" for name in settings.model_fields}
    assert set(COMPOSE["services"][service]["environment"]) <= known


def test_worker_and_item_processor_are_told_of_the_same_bundle_and_brokers() -> None:
    worker, items = (COMPOSE["services"][name] for name in ("worker", "items"))
    shared = ("NEXTCLICK_BOOTSTRAP_SERVERS", "NEXTCLICK_BUNDLE")
    assert [worker["environment"][v] for v in shared] == [items["environment"][v] for v in shared]
    assert worker["volumes"] == items["volumes"]
    assert [*worker["command"], *items["command"]] == ["worker", "count"]


@pytest.mark.parametrize(
    ("service", "settings"), [("worker", WorkerSettings), ("items", CountSettings)]
)
def test_prometheus_finds_a_service_at_the_port_of_its_pages(
    service: str, settings: type[ServiceSettings]
) -> None:
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"]
    found = [sd for job in scraped for sd in job["dns_sd_configs"] if sd["names"] == [service]]
    image = re.search(r"NEXTCLICK_WEB_PORT=(\d+)", (DEPLOY / "Dockerfile").read_text())
    assert image
    listens = COMPOSE["services"][service]["environment"].get("NEXTCLICK_WEB_PORT", int(image[1]))
    assert [sd["port"] for sd in found] == [listens]
    assert listens == settings.model_fields["web_port"].default


def test_compose_and_embedded_broker_are_the_same_kafka() -> None:
    assert COMPOSE["services"]["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_a_failed_command_is_one_sentence_and_shows_its_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = "print('no space left'); raise SystemExit(3)"
    with pytest.raises(DeployError, match="exited with code 3"):
        run(sys.executable, "-c", script)
    assert "no space left" in capsys.readouterr().err
