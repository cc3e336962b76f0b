"""Delivery under faults: ``python -m bench.faults`` (``make faults``).

Every run is one line of build/faults/CODE.jsonl; a second call goes on where the first stopped.
docs/performance.md says how to read the result.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from bench.faults.catalogue import FAULTS
from bench.faults.scene import Bundles, own_broker, run_once
from bench.faults.service import ROOT
from bench.faults.worker_without import GUARDS
from bench.provenance import RESULTS, keep
from deploy.broker import EmbeddedKafka
from deploy.command import DeployError
from deploy.processes import end_on_signals
from train.command import Settings, TrainError, run_command
from train.folders import locked

LINES = ROOT / "build" / "faults"
TRIES = 2
"""Most runs for each one that counts: not every fault hits."""
TRIES_WITHOUT = 10
WRITE_BUNDLES = """
import sys
from pathlib import Path
try:
    from bench.serving.bundles import write_tiny_bundle
except ImportError:  # of commits up to 8ec5a42
    from tests.bundles import write_tiny_bundle
for k in (20, 10):
    print(write_tiny_bundle(Path(sys.argv[1]), k=k, constant=True))
try:
    from bench.serving.bundles import even_live
except ImportError:  # of versions that do not learn from the stream
    sys.exit()
print(write_tiny_bundle(Path(sys.argv[1]), k=20, constant=True, live=even_live(20)))
"""

Row = dict[str, Any]


class FaultsSettings(Settings):
    """Strike workers and their broker under load; count clicks lost, doubled or misapplied."""

    runs: PositiveInt = 20
    """Runs of each fault that must hit; every other one with everything on one core."""
    faults: str = ",".join(FAULTS)
    """Faults, separated by commas."""
    minutes: PositiveFloat | None = None
    """Start no run after so long; unset: until all are done."""
    checkout: Path | None = None
    """Folder of another checkout whose worker runs, in place of this one's."""
    without: str | None = None
    """Take this guard out, and run the fault that must reveal it until it does."""
    out: Path = RESULTS / "faults.json"
    """File of the result."""


def code_of(checkout: Path | None) -> str:
    """What names the code that runs: a folder, or the last commit that changed it here."""
    if checkout is not None:
        return checkout.resolve().name
    which = ["--", "stream", "bench/faults"]
    commit = _git("log", "-1", "--format=%h", *which)
    return f"{commit}-changed" if _git("status", "--porcelain", *which) else commit


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_bundles(checkout: Path, folder: Path) -> Bundles:
    """Bundles that count clicks, by the code of a checkout."""
    command = [sys.executable, "-c", WRITE_BUNDLES, str(folder)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise TrainError(f"{checkout} wrote no bundle: {done.stderr.strip().splitlines()[-1]}")
    return Bundles(*(Path(line) for line in done.stdout.splitlines() if Path(line).is_dir()))


def counts(row: Row) -> bool:
    """Whether a run says something: its fault hit, or it went wrong before that."""
    return bool(row["hit"] or "error" in row)


def passed(row: Row) -> bool:
    return bool(row["exact"] and "error" not in row)


def due(
    rows: Sequence[Row], faults: Sequence[str], runs: int, pinned: bool, without: str | None
) -> list[str]:
    """The faults that need one more run, by the rows there are."""
    of = [row for row in rows if row["pinned"] == pinned and row["without"] == without]
    tried = Counter(row["fault"] for row in of)
    if without is not None:  # one failure is enough, on all cores
        revealed = pinned or any(counts(row) and not passed(row) for row in of)
        return [f for f in faults if not revealed and tried[f] < TRIES_WITHOUT]
    done = Counter(row["fault"] for row in of if counts(row))
    wanted = runs // 2 if pinned else (runs + 1) // 2
    return [f for f in faults if done[f] < wanted and tried[f] < TRIES * wanted]


def rows_so_far(lines: Path, out: Path, code: str) -> list[Row]:
    """The runs of a code, a line each; on a machine that has none yet, what the result kept."""
    if not lines.exists():
        kept = [row for row in rows_of(out) if row["code"] == code]
        lines.write_text("".join(f"{json.dumps(row)}\n" for row in kept))
    return [json.loads(line) for line in lines.read_text().splitlines()]


def rows_of(out: Path) -> list[Row]:
    """All runs that a result has kept."""
    rows: list[Row] = json.loads(out.read_text()).get("rows", []) if out.exists() else []
    return rows


class Series:
    """The runs of one code, kept line by line."""

    def __init__(self, settings: FaultsSettings, code: str, folder: Path) -> None:
        self.code = code
        self._settings, self._folder = settings, folder
        self._checkout = (settings.checkout or ROOT).resolve()
        self._bundles = write_bundles(self._checkout, folder)
        self._lines = LINES / f"{self.code}.jsonl"
        self._end_s = time.monotonic() + 60 * (settings.minutes or 60 * 24 * 365)
        self.rows = rows_so_far(self._lines, settings.out, code)

    def run(self, faults: Sequence[str]) -> None:
        """Round by round, until each fault has its runs or the time is over."""
        for pinned in (False, True):
            with on_one_core(pinned), ExitStack() as stack:
                shared: EmbeddedKafka | None = None
                while names := self._due(faults, pinned):
                    for fault in names:
                        if time.monotonic() > self._end_s:
                            return
                        if shared is None and not FAULTS[fault].own_broker:
                            data = self._folder / f"kafka-{pinned}"
                            shared = stack.enter_context(own_broker(data))
                        self._one(fault, pinned, shared)

    def _due(self, faults: Sequence[str], pinned: bool) -> list[str]:
        served = [name for name in faults if self._bundles.live or not FAULTS[name].live]
        return due(self.rows, served, self._settings.runs, pinned, self._settings.without)

    def _one(self, fault: str, pinned: bool, shared: EmbeddedKafka | None) -> None:
        guard = self._settings.without
        key = {"code": self.code, "fault": fault, "pinned": pinned, "without": guard}
        seed = 1 + max((r["seed"] for r in self.rows if key.items() <= r.items()), default=0)
        name = "-".join(map(str, (fault, *((guard,) if guard else ()), f"{pinned:d}", seed)))
        folder = LINES / self.code / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        began_s = time.monotonic()
        guards = (guard,) if guard else ()
        how: Row = {"guards": guards, "checkout": self._checkout, "shared": shared}
        try:
            row = run_once(FAULTS[fault], name, folder, self._bundles, **how)
        except Exception as error:  # one run that breaks down does not end the series
            row = {"hit": False, "exact": False, "error": f"{type(error).__name__}: {error}"[-400:]}
        row = key | {"seed": seed, "seconds": round(time.monotonic() - began_s, 1)} | row
        if passed(row):
            shutil.rmtree(folder)
            row.pop("evidence")
        with self._lines.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        said = "exact" if passed(row) else row.get("error", "NOT EXACT")
        hit = "" if row["hit"] else ", not hit"
        print(f"{name:24} {row['seconds']:5.1f} s  {said}{hit}", flush=True)


@contextmanager
def on_one_core(pinned: bool) -> Iterator[None]:
    """Pin this thread, and so all that it starts: broker, workers and load."""
    cores = os.sched_getaffinity(0)
    if pinned:
        os.sched_setaffinity(0, {max(cores)})
    yield
    os.sched_setaffinity(0, cores)


def summary(rows: Sequence[Row]) -> Row:
    """Counts and gaps by code and fault, and what each guard's removal has shown."""
    faults: dict[str, dict[str, Row]] = {}
    guards: dict[str, Row] = {}
    for code, fault in dict.fromkeys((r["code"], r["fault"]) for r in rows if not r["without"]):
        of = [r for r in rows if (r["code"], r["fault"], r["without"]) == (code, fault, None)]
        counted = [row for row in of if counts(row)]
        faults.setdefault(code, {})[fault] = {
            "runs": len(counted),
            "pinned": sum(row["pinned"] for row in counted),
            "exact": sum(map(passed, counted)),
            "not_hit": len(of) - len(counted),
            **{name: sum(row.get(name, 0) for row in counted) for name in DAMAGE},
            **{name: spread([row[name] for row in counted if name in row]) for name in GAPS},
        }
    for guard in dict.fromkeys(row["without"] for row in rows if row["without"]):
        of = [row for row in rows if row["without"] == guard]
        failed = [row for row in of if counts(row) and not passed(row)]
        guards[guard] = {"fault": of[-1]["fault"], "runs": len(of), "failed": len(failed)}
    return {"faults": faults, "guards": guards}


DAMAGE = (
    "missing",
    "duplicates",
    "over_applied",
    "under_applied",
    "over_counted",
    "under_counted",
)
GAPS = ("gap_s", "partition_gap_s")


def spread(values: Sequence[float]) -> Row:
    if not values:
        return {}
    return {"min": min(values), "median": round(median(values), 3), "max": max(values)}


def kept(out: Path, series: Series) -> list[Row]:
    """The rows of other codes that the result holds already, and those of this one."""
    return [row for row in rows_of(out) if row["code"] != series.code] + series.rows


def run(settings: FaultsSettings) -> int:
    end_on_signals()
    names = settings.faults.split(",")
    if settings.without is not None:
        if settings.without not in GUARDS:
            raise TrainError(f"--without: expected one of {', '.join(GUARDS)}")
        names = [GUARDS[settings.without].revealed_by]
    if unknown := set(names) - FAULTS.keys():
        raise TrainError(f"--faults: no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    code = code_of(settings.checkout)
    busy = f"runs of {code} are under way already; wait for their end"
    with (
        locked(LINES / code, busy),
        tempfile.TemporaryDirectory(prefix="nextclick-faults-") as folder,
    ):
        series = Series(settings, code, Path(folder))
        series.run(names)
    rows = kept(settings.out, series)
    found = summary(rows)
    keep(settings.out, {**found, "rows": rows})
    for code, of_code in found["faults"].items():
        for fault, of in of_code.items():
            gap = of["partition_gap_s"]
            print(f"{code}  {fault:12} {of['exact']} of {of['runs']} exact  longest gap {gap}")
    print(f"written to {settings.out}")
    if settings.without is not None:
        return 0 if found["guards"].get(settings.without, {}).get("failed") else 1
    ours = [r for r in series.rows if not r["without"] and r["fault"] in names and counts(r)]
    return 0 if ours and all(map(passed, ours)) else 1


if __name__ == "__main__":
    sys.exit(run_command(FaultsSettings, run, errors=(DeployError,)))
