"""The shipped recurrent model on Diginetica, alone and blended with VMIS-kNN.

It is an ensemble of networks of the preset that differ in their seed, put together as one.
``python -m bench.training.diginetica measure OUT`` trains it on the first 90 % of the training
sessions with three seeds, measures it on the last 10 % and keeps bench/results/diginetica.json and
the blend's weights. ``train OUT`` trains it on the whole file; ``score OUT TEST.tsv.gz`` prints
what OUT reaches on any file of the same format.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import structlog
import torch
from pydantic import PositiveInt
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    CliSubCommand,
    SettingsConfigDict,
    get_subcommand,
)

from bench.lab.run import SHOWN, differences, with_intervals
from bench.provenance import provenance
from bench.settings import parse
from train.baselines.vmis import vmis_knn
from train.blend.blend import BlendError, load_blend
from train.blend.fit import fit_blend
from train.data.clicks import ClickLogError, Columns, read_clicks
from train.data.sessions import Sessions, build_sessions
from train.ensemble import write_ensemble
from train.fit.loop import fit
from train.fit.settings import FitSettings
from train.fit.training_log import TrainingLog, read_training_log
from train.measure.evaluate import PROTOCOL, Predictor, rank_targets
from train.measure.metrics import figures
from train.measure.predictor import ModelPredictor
from train.measure.ranks import Ranks
from train.network.checkpoint import INFO, Checkpoint, CheckpointError, load_checkpoint
from train.progress import EpochProgress

PRESET = "diginetica"
RESULT = Path(__file__).parents[1] / "results" / "diginetica.json"
BLEND = Path(__file__).parents[1] / "results" / "diginetica-blend.json"
COLUMNS = Columns(preset="public")
NEIGHBOURS = {"m": 500, "k": 100, "window": 9}
MODEL, MEMBER, VMIS, BLENDED = "model", "member", "vmis-knn", "blend"
MEMBERS = 2
"""Networks in the model; a click in service pays for the width of all."""

log = structlog.get_logger()


class Measure(BaseSettings):
    """Train on the first 90 % of the sessions, measure on the last 10 %; goes on if it was cut."""

    out: CliPositionalArg[Path]
    """Folder of the checkpoints."""
    seeds: list[PositiveInt] = [1, 2, 3]
    """One ensemble each."""


class Train(BaseSettings):
    """Train the model on the whole training file; goes on if it was cut."""

    out: CliPositionalArg[Path]
    """Folder of the checkpoint and the blend's weights."""


class Score(BaseSettings):
    """Print one JSON line: what the model and the blend reach on a file."""

    out: CliPositionalArg[Path]
    """Folder that `train` wrote."""
    test: CliPositionalArg[Path]
    """A .tsv.gz with the columns SessionId, ItemId, Time."""


class Diginetica(BaseSettings):
    """The shipped model on Diginetica; the data is looked for under NEXTCLICK_DATA."""

    model_config = SettingsConfigDict(
        cli_prog_name="python -m bench.training.diginetica",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        use_attribute_docstrings=True,
    )
    measure: CliSubCommand[Measure]
    train: CliSubCommand[Train]
    score: CliSubCommand[Score]


def main() -> int:
    """Run one of the commands."""
    torch.set_num_threads(1)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    command = get_subcommand(parse(Diginetica, commands=True))
    if isinstance(command, Measure):
        measure(command)
    elif isinstance(command, Train):
        ensemble(training_log(0.0), command.out, seed=1)
        shutil.copyfile(BLEND, command.out / BLEND.name)
    elif isinstance(command, Score):
        try:
            print(json.dumps(score(command)))
        except (BlendError, CheckpointError, ClickLogError) as error:
            sys.exit(str(error))
    return 0


def training_file() -> Path:
    """Of the data set."""
    data = Path(os.environ.get("NEXTCLICK_DATA", "../shared/data"))
    path = data / "diginetica-sessions" / "train.tsv.gz"
    if not path.exists():
        sys.exit(f"{path} is not there: NEXTCLICK_DATA names the folder of diginetica-sessions/")
    return path


def settings(validation_fraction: float, out: Path, seed: int) -> FitSettings:
    """The preset's."""
    return FitSettings.model_validate(
        {
            "clicks": training_file(),
            "columns": "public",
            "out": out,
            "preset": PRESET,
            "validation": validation_fraction,
            "seed": seed,
        }
    )


def training_log(validation_fraction: float) -> TrainingLog:
    """Read once for all seeds."""
    return read_training_log(settings(validation_fraction, Path(), seed=1))


def ensemble(data: TrainingLog, out: Path, seed: int) -> Checkpoint:
    """The checkpoint in `out`: the networks of MEMBERS seeds, no two of which share one."""
    first = (seed - 1) * MEMBERS + 1
    seeds = range(first, first + MEMBERS)
    members = [trained(data, out / f"{MEMBER}-{n}", own) for n, own in enumerate(seeds, 1)]
    write_ensemble(members, out)
    return load_checkpoint(out)


def trained(data: TrainingLog, out: Path, seed: int) -> Checkpoint:
    """The checkpoint of one network in `out`, trained to its end."""
    wanted = settings(0.0, out, seed)
    resume = load_checkpoint(out) if (out / INFO).exists() else None
    schedule = wanted.schedule()
    predictions = data.train.n_clicks - len(data.train)
    with EpochProgress(predictions, 1, schedule.epochs) as progress:
        fit(data, wanted.hyperparameters(), schedule, out, resume=resume, watch=progress.watch())
    return load_checkpoint(out)


def measure(command: Measure) -> None:
    """Train every seed, blend, and keep figures with intervals."""
    data = training_log(0.1)
    assert data.validation is not None
    n_items = len(data.catalogue)
    neighbours = vmis_knn(data.train, n_items, **NEIGHBOURS)
    ranks = {VMIS: rank_targets(neighbours, data.validation, n_items)}
    rows = [row(VMIS, None, ranks[VMIS])]
    for seed in command.seeds:
        out = command.out / f"seed-{seed}"
        checkpoint = ensemble(data, out, seed)
        parts: dict[str, Predictor] = {
            MODEL: ModelPredictor(checkpoint.model),
            VMIS: neighbours,
        }
        member = ModelPredictor(load_checkpoint(out / f"{MEMBER}-1").model)
        for name, predictor in ((MEMBER, member), (MODEL, parts[MODEL])):
            ranks[name] = rank_targets(predictor, data.validation, n_items)
        ranks[BLENDED] = cross_fitted(parts, data.validation, n_items)
        rows += [row(name, seed, ranks[name]) for name in (MEMBER, MODEL, BLENDED)]
        for part in (MODEL, VMIS):
            rows[-1][f"against_{part}"] = differences(ranks[BLENDED], ranks[part])
        for found in rows[-3:]:
            log.info("seed_done", **found)
        if seed == command.seeds[0]:
            fit_blend(parts, data.validation, n_items).write(BLEND)
    content = {
        "protocol": PROTOCOL,
        **provenance(),
        "split": "the last 10 % of the training sessions; blends fitted on one half of them and "
        "measured on the other, in turn",
        "rows": rows,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def cross_fitted(parts: Mapping[str, Predictor], validation: Sessions, n_items: int) -> Ranks:
    """The blend's ranks, each half of the sessions by weights fitted on the other."""
    middle = len(validation) // 2
    halves = validation.slice(0, middle), validation.slice(middle, len(validation))
    found = []
    for measured, fitted in (halves, halves[::-1]):
        blend = fit_blend(parts, fitted, n_items)
        found.append(rank_targets(blend, measured, n_items))
    found[1] = replace(found[1], session=found[1].session + middle)
    columns = (field.name for field in fields(Ranks))
    return Ranks(**{n: np.concatenate([getattr(ranks, n) for ranks in found]) for n in columns})


def row(model: str, seed: int | None, ranks: Ranks) -> dict[str, object]:
    """Figures with their intervals."""
    return {"model": model, "seed": seed, **with_intervals(ranks)}


def score(command: Score) -> dict[str, dict[str, float]]:
    """What the folder's model and blend reach on a file."""
    checkpoint = load_checkpoint(command.out)
    catalogue = checkpoint.catalogue
    n_items = len(catalogue)
    known = build_sessions(read_clicks(training_file(), COLUMNS).clicks, catalogue).sessions
    asked = build_sessions(read_clicks(command.test, COLUMNS).clicks, catalogue).sessions
    if not asked.n_targets:
        raise ClickLogError(f"{command.test} has no session of two items of the training file")
    parts: dict[str, Predictor] = {
        MODEL: ModelPredictor(checkpoint.model),
        VMIS: vmis_knn(known, n_items, **NEIGHBOURS),
    }
    predictors = {MODEL: parts[MODEL], BLENDED: load_blend(command.out / BLEND.name, parts)}
    result = {}
    for name, predictor in predictors.items():
        found = figures(rank_targets(predictor, asked, n_items))
        result[name] = {metric: found[metric] for metric in SHOWN}
        result[name]["predictions"] = int(found["predictions"])
    return result


if __name__ == "__main__":
    sys.exit(main())
