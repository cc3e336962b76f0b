"""What is kept of a measurement: its figures, and where and with what it was made."""

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deploy.broker import KAFKA_VERSION

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    *("aiokafka", "confluent-kafka", "faust-streaming", "msgspec", "numpy", "numba"),
    *("onnxruntime", "polars", "prometheus-client", "torch", "uvloop"),
)


def keep(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures with their provenance as JSON; each of the `rows` takes one line."""
    content = {**provenance(), **figures}
    rows = [json.dumps(row) for row in content.pop("rows", ())]
    text = json.dumps(content, indent=1)
    if rows:
        text = text.removesuffix("\n}") + ',\n "rows": [\n  ' + ",\n  ".join(rows) + "\n ]\n}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def provenance() -> dict[str, Any]:
    """Machine, versions, commit and date."""
    cpu = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD") or "unknown",
        # Kept results are none: a run that is kept row by row would see its own.
        "uncommitted_changes": bool(
            _git("status", "--porcelain", "--untracked-files=no", "--", ":!bench/results")
        ),
        "machine": {
            "cpu": cpu[1].strip() if cpu else platform.processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(memory / 2**30, 1),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "kafka": KAFKA_VERSION,
            **{package: version(package) for package in PACKAGES},
        },
    }


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
