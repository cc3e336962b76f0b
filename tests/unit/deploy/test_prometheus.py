"""Rules, alerts, dashboard, metrics and runbook say the same."""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Metric

from deploy.grafana.dashboard import OUTPUT, ROWS, build
from stream.metrics import LATENCY_BUCKETS, EngineMetrics, ItemMetrics, Metrics

FOLDER = Path("deploy/prometheus")
OPERATIONS = Path("docs/operations.md")
# Prometheus' own and the Python client's, of every process.
FOREIGN = {"up", "process_start_time_seconds", "process_cpu_seconds_total"} | {
    "process_resident_memory_bytes"
}


@functools.cache
def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@functools.cache
def metrics() -> tuple[EngineMetrics, ...]:
    """Those of a worker and of the item processor."""
    return Metrics(CollectorRegistry()), ItemMetrics(CollectorRegistry())


def families() -> list[Metric]:
    return [family for one in metrics() for family in one.registry.collect()]


@functools.cache
def exported() -> set[str]:
    """Every series name that can be exported, whether or not it has a value yet."""
    suffixes = {
        "counter": ("_total",),
        "gauge": ("",),
        "histogram": ("_bucket", "_sum", "_count"),
        "info": ("_info",),
    }
    return {family.name + suffix for family in families() for suffix in suffixes[family.type]}


@functools.cache
def labels() -> dict[str, set[str]]:
    """The labels of each of our instruments, by the name of its family."""
    instruments = [i for one in metrics() for i in vars(one).values() if hasattr(i, "_labelnames")]
    return {i._name: set(i._labelnames) for i in instruments}


@functools.cache
def expressions() -> dict[str, str]:
    """Every PromQL expression we ship, by where it stands."""
    found = {f"rule {rule['record']}": rule["expr"] for rule in rules("recording.yaml")}
    found |= {f"alert {rule['alert']}": rule["expr"] for rule in rules("alerts.yaml")}
    for row in ROWS.values():
        for graph in row:
            for legend, expression in graph.queries.items():
                found[f"panel {graph.title}, {legend}"] = expression
    return found


@pytest.mark.parametrize("where", expressions())
def test_every_metric_in_an_expression_exists(where: str) -> None:
    expression = expressions()[where]
    recorded = {rule["record"] for rule in rules("recording.yaml")}
    named = set(re.findall(r"nextclick:[a-z0-9_:]+", expression))
    assert named <= recorded
    rest = re.sub(r"nextclick:[a-z0-9_:]+", "", expression)
    rest = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", "", rest)
    words = {word for word in re.findall(r"[a-z_][a-z0-9_]*", rest) if "_" in word or word == "up"}
    plain = words - {"histogram_quantile", "clamp_min"}
    assert plain <= exported() | FOREIGN
    assert plain | named


@pytest.mark.parametrize("where", expressions())
def test_every_label_in_an_expression_exists(where: str) -> None:
    expression = expressions()[where]
    named = [name for name in labels() if re.search(rf"\b{name}(_|\b)", expression)]
    known = set().union(
        {"le", "job", "instance", "bundle_id", "seen_items"}, *(labels()[f] for f in named)
    )
    by = {
        label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")
    }
    matched = set(re.findall(r"([a-z_]+)(?:=~?|!~|!=)\"", expression))
    assert by | matched <= known


def test_the_dashboard_file_is_what_the_code_builds() -> None:
    assert OUTPUT.read_text() == build(), "run python -m deploy.grafana.dashboard"


def test_every_metric_is_read_by_a_panel_or_a_rule() -> None:
    shown = " ".join(expressions().values())
    assert {family.name for family in families() if family.name not in shown} == set()


def test_the_latency_objective_is_one_figure_everywhere() -> None:
    (alert,) = [rule for rule in rules("alerts.yaml") if rule["alert"] == "LatencyOverObjective"]
    _, objective_s = ROWS["Latency"][0].limits
    assert float(alert["expr"].split(">")[1]) == objective_s
    # A bound of a bucket: the alert then compares counts and interpolates nothing.
    assert objective_s in LATENCY_BUCKETS
    assert f"{1000 * objective_s:.0f} ms" in OPERATIONS.read_text()


@pytest.mark.parametrize("name", [rule["alert"] for rule in rules("alerts.yaml")])
def test_every_alert_has_a_firing_and_a_silent_case_and_a_runbook_entry(name: str) -> None:
    (alert,) = [rule for rule in rules("alerts.yaml") if rule["alert"] == name]
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
    cases = [c for t in tests for c in t["alert_rule_test"] if c["alertname"] == name]
    assert {bool(case.get("exp_alerts")) for case in cases} == {True, False}
    file, anchor = alert["annotations"]["runbook"].split("#")
    headings = re.findall(r"^## (\w+)$", Path(file).read_text(), re.MULTILINE)
    assert name in headings
    assert anchor == name.lower()


def test_the_runbook_describes_no_alert_that_is_gone() -> None:
    text = OPERATIONS.read_text().split("# Alerts", 1)[1]
    names = {rule["alert"] for rule in rules("alerts.yaml")}
    assert set(re.findall(r"^## (\w+)$", text, re.MULTILINE)) == names


@pytest.mark.parametrize(
    "arguments",
    [["check", "config", "prometheus.yaml"], ["test", "rules", "alerts_test.yaml"]],
    ids=" ".join,
)
def test_promtool_accepts(arguments: list[str]) -> None:
    if shutil.which("promtool") is None:
        reason = "no promtool is installed (apt-get install prometheus)"
        if os.environ.get("NEXTCLICK_REQUIRE_PROMETHEUS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    done = subprocess.run(
        ["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr
