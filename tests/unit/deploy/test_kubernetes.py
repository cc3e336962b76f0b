"""The Kubernetes manifest agrees with the settings, the pages and the image."""

import re
from pathlib import Path
from typing import Any

import yaml

from deploy.images import STREAM_IMAGE
from stream.settings import TopicsSettings, WorkerSettings

OBJECTS: dict[str, Any] = {
    found["kind"]: found
    for found in yaml.safe_load_all(Path("deploy/kubernetes/nextclick.yaml").read_text())
}
TOPICS = OBJECTS["Job"]["spec"]["template"]["spec"]["containers"][0]
WORKER = OBJECTS["Deployment"]["spec"]["template"]["spec"]["containers"][0]


def variables(settings: type[WorkerSettings] | type[TopicsSettings]) -> set[str]:
    return {f"NEXTCLICK_{name.upper()}" for name in settings.model_fields}


def test_every_variable_is_a_setting() -> None:
    assert set(OBJECTS["ConfigMap"]["data"]) <= variables(WorkerSettings)
    assert {variable["name"] for variable in TOPICS["env"]} <= variables(TopicsSettings)


def test_the_worker_gets_what_has_no_default() -> None:
    required = {
        f"NEXTCLICK_{name.upper()}"
        for name, field in WorkerSettings.model_fields.items()
        if field.is_required()
    }
    assert required <= set(OBJECTS["ConfigMap"]["data"])


def test_the_bundle_lies_on_the_mounted_volume() -> None:
    bundle = Path(OBJECTS["ConfigMap"]["data"]["NEXTCLICK_BUNDLE"])
    assert Path(WORKER["volumeMounts"][0]["mountPath"]) in bundle.parents


def test_the_probes_ask_pages_that_the_worker_has_on_its_port() -> None:
    pages = re.findall(r'\.page\("(/[a-z]+)"\)', Path("stream/web/pages.py").read_text())
    assert WORKER["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert WORKER["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert {"/healthz", "/ready", "/metrics"} <= set(pages)
    (port,) = WORKER["ports"]
    assert port["containerPort"] == WorkerSettings.model_fields["web_port"].default


def test_topics_and_workers_run_our_image_and_not_as_root() -> None:
    for kind, container in (("Job", TOPICS), ("Deployment", WORKER)):
        assert container["image"] == STREAM_IMAGE
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        pod = OBJECTS[kind]["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_selectors_find_the_pods() -> None:
    spec = OBJECTS["Deployment"]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
