"""How good lists are that learn from the stream, offline: ``python -m bench.live.offline``.

What ``python -m train prequential`` gives for the test parts of public logs, with networks of each
log's preset that differ in their seed.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import structlog

from bench.datasets import folder_of
from bench.live.__main__ import BUILD, FIGURES, SEEDS
from bench.provenance import RESULTS, keep, provenance
from bench.serving.runs import Runs
from train.command import Settings, run_command
from train.fit.command import run_fit
from train.fit.settings import FitSettings
from train.live.command import PROTOCOL, PrequentialSettings, prequential
from train.live.fit import LIVE, STATIC, bias_name
from train.network.checkpoint import INFO

CHOSEN = ("time_scale_s", "popularity_half_life_s", "excludes_seen", "bias", "sharpness")

Run = dict[str, Any]

log = structlog.get_logger()


class OfflineSettings(Settings):
    """Measure lists that learn from the stream on the test parts of public logs.

    What was measured goes to build/bench, run by run: the command, started again, goes on there.
    """

    logs: tuple[str, ...] = ("rsc15-100k", "foursquare-nyc")
    """Names of logs that have a preset."""
    seeds: tuple[int, ...] = SEEDS
    """Of the networks."""
    checkpoints: Path = Path("build/prequential")
    """Folder of the networks: LOG-SEED. One that does not exist is trained."""
    out: Path = RESULTS / "prequential.json"
    """File of the result."""


def run(settings: OfflineSettings) -> None:
    runs = Runs(BUILD / f"prequential-{provenance()['commit']}.jsonl")
    found = [
        runs.row({"log": name, "seed": seed}, partial(measure, name, seed, settings.checkpoints))
        for name in settings.logs
        for seed in settings.seeds
    ]
    result = summary(found)
    keep(settings.out, {"protocol": PROTOCOL, "seeds": settings.seeds, **result})
    for row in result["rows"]:
        gain = ", ".join(f"{row[f'{figure}_gain']:+.4f}" for figure in FIGURES)
        figures = " / ".join(f"{row[figure]:.4f}" for figure in FIGURES)
        print(f"{row['log']:>16} {row['name']:>6}  {figures}  over the network {gain}")
    print(f"written to {settings.out}")


def measure(name: str, seed: int, checkpoints: Path) -> Run:
    """One network's figures on its log's test part, and what was fitted for it."""
    train, test = (folder_of(name) / f"{part}.tsv.gz" for part in ("train", "test"))
    checkpoint = checkpoints / f"{name}-{seed}"
    if not (checkpoint / INFO).exists():
        given = {"clicks": train, "columns": "public", "preset": name, "seed": seed}
        run_fit(FitSettings.model_validate({**given, "out": checkpoint}))
    settings = {"history": train, "clicks": test, "columns": "public", "checkpoint": checkpoint}
    result = prequential(PrequentialSettings.model_validate(settings))
    of_bias = bias_name(result["bias"])
    rows = {
        "bias" if row["name"] == of_bias else row["name"]: {f: row[f] for f in FIGURES}
        for row in result["rows"]
    }
    log.info("measured", log=name, seed=seed, **rows[LIVE])
    chosen = {key: result[key] for key in CHOSEN}
    return {"predictions": result["predictions"], "chosen": chosen, "figures": rows}


def summary(runs: Sequence[Run]) -> Run:
    """A row for each part of each log: the mean of its networks, each of them, and what the part
    gains over the network alone."""
    rows = []
    for name in dict.fromkeys(run["log"] for run in runs):
        own = [run for run in runs if run["log"] == name]
        for part in own[0]["figures"]:
            by_run = {f: [run["figures"][part][f] for run in own] for f in FIGURES}
            alone = {f: [run["figures"][STATIC][f] for run in own] for f in FIGURES}
            rows.append(
                {
                    "log": name,
                    "name": part,
                    **{f: round(mean(by_run[f]), 4) for f in FIGURES},
                    # + 0.0: no -0.0
                    **{
                        f"{f}_gain": round(mean(by_run[f]) - mean(alone[f]), 4) + 0.0
                        for f in FIGURES
                    },
                    **{f"{f}_by_run": by_run[f] for f in FIGURES},
                }
            )
    predictions = {run["log"]: run["predictions"] for run in runs}
    chosen = [{"log": run["log"], "seed": run["seed"], **run["chosen"]} for run in runs]
    return {"predictions": predictions, "chosen": chosen, "rows": rows}


if __name__ == "__main__":
    sys.exit(run_command(OfflineSettings, run))
