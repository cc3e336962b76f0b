"""The defaults of `fit` compared with presets: ``python -m bench.lab.defaults [DATASET...]``.

Both are trained on the older part of a training file for as many epochs, so that they see equally
many clicks, and validated on the newer part after each; no test file is read. Rows that are kept in
`bench/results/defaults.json` with the same hyperparameters are not measured again.
"""

import json
import os
import sys
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded, which is next

import torch
from pydantic import Field, PositiveInt
from pydantic_settings import CliPositionalArg

from bench.datasets import DATASETS, check_known, folder_of
from bench.fitting import SHOWN, trained
from bench.provenance import RESULTS, keep
from train.command import Settings, run_command
from train.fit.loop import Schedule
from train.fit.settings import FitSettings
from train.fit.training_log import read_training_log
from train.network.presets import PRESETS, sizes_for

RESULT = RESULTS / "defaults.json"


class DefaultsSettings(Settings):
    """Train the defaults and the preset of each data set, and keep their validation figures."""

    datasets: CliPositionalArg[list[str]] = Field(default=[*DATASETS])
    """Folders under NEXTCLICK_DATA."""
    seeds: tuple[PositiveInt, ...] = (1, 2, 3)
    """Seeds to train with."""


def given_to_fit(dataset: str) -> dict[str, dict[str, Any]]:
    """What `fit` is given for each row of a data set; not all of them have a preset."""
    preset = dataset.removesuffix("-sessions")
    return {"defaults": {}} | ({"preset": {"preset": preset}} if preset in PRESETS else {})


def fit_settings(dataset: str, seed: int, given: dict[str, Any]) -> FitSettings:
    """What `fit` is told: the preset's epochs, all of them, whatever else is given."""
    log = {"clicks": folder_of(dataset) / "train.tsv.gz", "columns": "public", "out": Path()}
    log["validation"] = DATASETS[dataset].validation_fraction
    longest = [*given_to_fit(dataset).values()][-1]
    epochs = FitSettings.model_validate(log | longest).epochs
    return FitSettings.model_validate(log | {"seed": seed, "epochs": epochs} | given)


def run(settings: DefaultsSettings) -> None:
    torch.set_num_threads(1)
    check_known(settings.datasets)
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    kept = {(row["dataset"], row["label"], row["seed"]): row for row in rows}
    for dataset in settings.datasets:
        given = given_to_fit(dataset)
        log = read_training_log(fit_settings(dataset, 1, {}))
        for seed, label in ((seed, label) for seed in settings.seeds for label in given):
            wanted = fit_settings(dataset, seed, given[label])
            row = {"dataset": dataset, "label": label, "seed": seed, "epochs": wanted.epochs}
            row["clicks_seen"] = wanted.epochs * log.train.n_clicks
            hyperparameters = wanted.hyperparameters(
                sizes_for(log.train.n_clicks, wanted.optimiser)
            )
            row["hyperparameters"] = hyperparameters.model_dump(mode="json")
            if row.items() <= kept.get((dataset, label, seed), {}).items():
                continue
            schedule = Schedule(epochs=wanted.epochs, patience=0)
            info = trained(log, hyperparameters, schedule).info
            row |= {"epoch": info.epoch} | {name: round(info.metrics[name], 5) for name in SHOWN}
            row["history"] = [[round(epoch.metrics[m], 4) for m in SHOWN] for epoch in info.history]
            row["seconds"] = round(sum(epoch.seconds for epoch in info.history))
            print(json.dumps(row), flush=True)
            kept[dataset, label, seed] = row
            keep(RESULT, {"rows": [*kept.values()]})
    for dataset, label in dict.fromkeys((dataset, label) for dataset, label, _ in kept):
        own = [row for (*of, _), row in kept.items() if of == [dataset, label]]
        means = "  ".join(f"{name} {mean(row[name] for row in own):.4f}" for name in SHOWN)
        print(f"{dataset:20} {label:10} {len(own)} seeds  {means}")


if __name__ == "__main__":
    sys.exit(run_command(DefaultsSettings, run))
