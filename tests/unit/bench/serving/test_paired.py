"""An older commit's files, and the ratios of its figures to ours."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.serving.paired import BEFORE, NOW, ROOT, checked_out, ratios
from bench.serving.rounds import Backlog, Latency
from bench.serving.stream import Runs
from train.command import TrainError


def test_a_ratio_is_the_figure_now_over_the_one_before_in_the_same_round() -> None:
    def runs(rates: list[float], cpu: float, ms: float) -> Runs:
        latency = Latency(np.full(100, ms), {"cpu": cpu}, producer_behind_ms=0.0)
        return Runs([Backlog(rate, {"cpu": cpu}) for rate in rates], [latency])

    found = ratios({NOW: runs([900.0, 1000.0], 110.0, 3.0), BEFORE: runs([1000.0, 500], 100.0, 2)})
    assert found == {
        "clicks_per_second": [0.9, 2.0],
        "cpu_us_per_click": [1.1, 1.1],
        "latency_p50_ms": [1.5],
        "latency_p99_ms": [1.5],
    }


def test_an_unknown_commit_is_one_sentence() -> None:
    with pytest.raises(TrainError, match=r"^--against no-commit: .*no-commit"):
        checked_out("no-commit")


def test_a_commits_files_are_what_its_worker_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("the sources are not a git repository")
    monkeypatch.setattr("bench.serving.paired.COMMITS", tmp_path)
    where = "import stream.worker; print(stream.worker.__file__)"
    folder = checked_out("HEAD")
    done = subprocess.run([sys.executable, "-c", where], cwd=folder, capture_output=True, text=True)
    assert done.stdout.strip() == str(folder / "stream" / "worker.py")
