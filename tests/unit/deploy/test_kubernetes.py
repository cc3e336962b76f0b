"""The Kubernetes manifest agrees with the settings, the pages and the image."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.images import STREAM_IMAGE
from stream.__main__ import COMMANDS
from stream.settings import CountSettings, KafkaSettings, TopicsSettings, WorkerSettings

OBJECTS: dict[str, Any] = {
    found["metadata"]["name"]: found
    for found in yaml.safe_load_all(Path("deploy/kubernetes/nextclick.yaml").read_text())
}
SHARED = set(OBJECTS["nextclick"]["data"])
RUN: dict[str, type[KafkaSettings]] = {
    "nextclick-topics": TopicsSettings,
    "nextclick-worker": WorkerSettings,
    "nextclick-items": CountSettings,
}
SERVICES = ["nextclick-worker", "nextclick-items"]


def pod(name: str) -> Any:
    return OBJECTS[name]["spec"]["template"]["spec"]


def container(name: str) -> Any:
    (only,) = pod(name)["containers"]
    return only


def variables(settings: type[KafkaSettings]) -> set[str]:
    return {f"NEXTCLICK_{name.upper()}" for name in settings.model_fields}


@pytest.mark.parametrize("name", RUN)
def test_a_pod_runs_a_command_with_settings_of_its_own(name: str) -> None:
    command = " ".join(container(name)["args"])
    assert COMMANDS[command][0] is RUN[name]
    own = {variable["name"] for variable in container(name).get("env", [])}
    assert own <= variables(RUN[name])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_gets_what_has_no_default(name: str) -> None:
    fields = RUN[name].model_fields.items()
    required = {f"NEXTCLICK_{field.upper()}" for field, info in fields if info.is_required()}
    assert required <= SHARED <= variables(RUN[name])
    assert container(name)["envFrom"] == [{"configMapRef": {"name": "nextclick"}}]


@pytest.mark.parametrize("name", SERVICES)
def test_the_bundle_lies_on_the_mounted_volume(name: str) -> None:
    bundle = Path(OBJECTS["nextclick"]["data"]["NEXTCLICK_BUNDLE"])
    assert Path(container(name)["volumeMounts"][0]["mountPath"]) in bundle.parents


@pytest.mark.parametrize("name", SERVICES)
def test_the_probes_ask_pages_that_there_are_on_the_port(name: str) -> None:
    pages = re.findall(r'\.page\("(/[a-z]+)"\)', Path("stream/web/pages.py").read_text())
    service = container(name)
    assert service["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert service["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert {"/healthz", "/ready", "/metrics"} <= set(pages)
    ports = [port["containerPort"] for port in service["ports"]]
    assert ports == [RUN[name].model_fields["web_port"].default]
    # The image says where it listens, and a pod may say otherwise.
    (image,) = re.findall(r"NEXTCLICK_WEB_PORT=(\d+)", Path("deploy/Dockerfile").read_text())
    own = {variable["name"]: variable["value"] for variable in service.get("env", [])}
    scraped = OBJECTS[name]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"]
    assert own.get("NEXTCLICK_WEB_PORT", image) == scraped == str(ports[0])


@pytest.mark.parametrize("name", RUN)
def test_everything_runs_our_image_and_not_as_root(name: str) -> None:
    assert container(name)["image"] == STREAM_IMAGE
    assert container(name)["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod(name)["securityContext"]["runAsNonRoot"] is True


@pytest.mark.parametrize("name", SERVICES)
def test_selectors_find_the_pods(name: str) -> None:
    spec = OBJECTS[name]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
