"""Who is measured, and with whose files."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.serving.stream import BenchSettings, checked_out
from bench.serving.workers import ROOT
from train.command import TrainError, parse


def test_an_unknown_commit_and_an_unknown_contender_are_one_sentence() -> None:
    with pytest.raises(TrainError, match=r"^no files of commit no-commit: .*no-commit"):
        checked_out("no-commit")
    with pytest.raises(TrainError, match=r"--contenders: expected some of nextclick, .*nobody"):
        parse(BenchSettings, ["--contenders", "naive,nobody"])


def test_a_commits_files_are_what_its_worker_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("the sources are not a git repository")
    monkeypatch.setattr("bench.serving.stream.COMMITS", tmp_path)
    where = "import stream.worker; print(stream.worker.__file__)"
    folder = checked_out("HEAD")
    done = subprocess.run([sys.executable, "-c", where], cwd=folder, capture_output=True, text=True)
    assert done.stdout.strip() == str(folder / "stream" / "worker.py")
