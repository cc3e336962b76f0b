"""What a process has used, by click."""

import os
import time
from pathlib import Path

import pytest

from bench.serving.quix_app import QuixSettings
from bench.serving.workers import (
    QUIX_PYTHON,
    Contender,
    Usage,
    command,
    cpu_seconds,
    loop_cpu_seconds,
)
from stream.settings import KafkaSettings
from train.command import TrainError


def test_cpu_time_by_click_is_divided_among_the_stages() -> None:
    stages = {"plan": 1.0, "score": 2.0, "finish": 0.5, "apply": 0.5, "deliver": 9.0}
    before = Usage(100, 10.0, 1.0, 5.0, batches=5, stage_s=dict.fromkeys(stages, 0.0))
    after = Usage(1_100, 16.0, 3.0, 8.0, batches=25, stage_s=stages)
    assert after.per_click(before) == {
        "worker": 6_000.0,
        "broker": 2_000.0,
        "event_loop": 3_000.0,
        "plan": 1_000.0,
        "score": 2_000.0,
        "finish": 500.0,
        "apply": 500.0,
        "kafka_and_faust": 2_000.0,
        "deliver_wall": 9_000.0,
        "clicks_a_batch": 50.0,
    }


def test_a_contender_without_metrics_has_its_cpu_time_alone() -> None:
    assert Usage(200, 3.0, 5.0, 2.0).per_click(Usage(100, 1.0, 2.0, 1.0)) == {
        "worker": 20_000.0,
        "broker": 30_000.0,
        "event_loop": 10_000.0,
    }


def test_a_time_without_an_answer_has_no_figures() -> None:
    with pytest.raises(TrainError, match="no click was answered"):
        Usage(100, 3.0, 5.0, 2.0).per_click(Usage(100, 1.0, 2.0, 1.0))


def test_cpu_time_is_that_of_the_process() -> None:
    # The kernel counts in hundredths of a second, and so does the clock beside it, nearly.
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert abs(cpu_seconds(os.getpid()) - time.process_time()) < 0.05
    assert 0 < loop_cpu_seconds(os.getpid()) <= cpu_seconds(os.getpid()) + 0.02


def test_a_command_names_what_differs_from_the_defaults() -> None:
    kafka = KafkaSettings(bootstrap_servers="localhost:1", app_id="bench-a")
    settings = Contender("a", Path("bundle"), 1).settings(kafka, 7, Path())
    words = command(settings)
    assert words[1:4] == ["-m", "stream", "worker"]
    flags = dict(zip(words[4::2], words[5::2], strict=True))
    assert flags == {
        "--bootstrap-servers": "localhost:1",
        "--app-id": "bench-a",
        "--bundle": "bundle",
        "--web-port": "7",
        "--log-level": "warning",
    }


def test_a_quix_application_runs_in_its_own_environment_with_its_own_state() -> None:
    kafka = KafkaSettings(bootstrap_servers="localhost:1", app_id="bench-a")
    contender = Contender("a", Path("bundle"), 1, QuixSettings, commit_interval_s=0.1)
    words = command(contender.settings(kafka, 7, Path("folder")))
    assert words[0] == str(QUIX_PYTHON)
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert flags == {
        "--bootstrap-servers": "localhost:1",
        "--app-id": "bench-a",
        "--bundle": "bundle",
        "--state-dir": "folder/state-bench-a",
        "--commit-interval-s": "0.1",
    }
