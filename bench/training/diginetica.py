"""The shipped recurrent model on Diginetica, alone and blended with VMIS-kNN.

It is an ensemble of networks of the preset that differ in their seed, put together as one.
``python -m bench.training.diginetica measure OUT`` trains it on the first 90 % of the training
sessions with three seeds, measures it on the last 10 % and keeps bench/results/diginetica.json and
the blend's weights. ``train OUT`` trains it on the whole file; ``score OUT TEST.tsv.gz`` prints
what OUT reaches on any file of the same format.
"""

import json
import shutil
import sys
from pathlib import Path

import structlog
import torch
from pydantic import PositiveInt
from pydantic_settings import CliPositionalArg, CliSubCommand, get_subcommand

from bench.datasets import PUBLIC, folder_of, read_log
from bench.fitting import SHOWN, differences, trained, with_intervals
from bench.provenance import RESULTS, keep
from train.baselines.neighbours import vmis_knn
from train.blend.blend import load_blend
from train.blend.fit import cross_fitted_ranks, fit_blend
from train.command import Settings, TrainError, run_command
from train.data.clicks import read_clicks
from train.data.sessions import build_sessions
from train.ensemble import write_ensemble
from train.fit.settings import FitSettings
from train.fit.training_log import TrainingLog, read_training_log
from train.measure.metrics import figures
from train.measure.predictor import ModelPredictor
from train.measure.ranking import PROTOCOL, Predictor, rank_targets
from train.network.checkpoint import INFO, Checkpoint, load_checkpoint

DATASET, PRESET = "diginetica-sessions", "diginetica"
RESULT, BLEND = RESULTS / "diginetica.json", RESULTS / "diginetica-blend.json"
NEIGHBOURS = {"m": 500, "k": 100, "window": 9}
MODEL, MEMBER, VMIS, BLENDED = "model", "member", "vmis-knn", "blend"
MEMBERS = 2
"""Networks in the model; a click in service pays for the width of all."""

log = structlog.get_logger()


class Measure(Settings):
    """Train on the first 90 % of the sessions, measure on the last 10 %; resumes if interrupted."""

    out: CliPositionalArg[Path]
    """Folder of the checkpoints."""
    seeds: tuple[PositiveInt, ...] = (1, 2, 3)
    """One ensemble each."""


class Train(Settings):
    """Train the model on the whole training file; resumes if interrupted."""

    out: CliPositionalArg[Path]
    """Folder of the checkpoint and the blend's weights."""


class Score(Settings):
    """Print one JSON line: what the model and the blend reach on a file."""

    out: CliPositionalArg[Path]
    """Folder that `train` wrote."""
    test: CliPositionalArg[Path]
    """A .tsv.gz with the columns SessionId, ItemId, Time."""


class Diginetica(Settings):
    """The shipped model on Diginetica; the data are looked for under NEXTCLICK_DATA."""

    measure: CliSubCommand[Measure]
    train: CliSubCommand[Train]
    score: CliSubCommand[Score]


def run(settings: Diginetica) -> None:
    torch.set_num_threads(1)
    command = get_subcommand(settings)
    if isinstance(command, Measure):
        measure(command)
    elif isinstance(command, Train):
        ensemble(read_training_log(fit_settings(0.0, command.out, 1)), command.out, seed=1)
        shutil.copyfile(BLEND, command.out / BLEND.name)
    elif isinstance(command, Score):
        print(json.dumps(score(command)))


def fit_settings(validation_fraction: float, out: Path, seed: int) -> FitSettings:
    given = {
        "clicks": folder_of(DATASET) / "train.tsv.gz",
        "columns": "public",
        "out": out,
        "preset": PRESET,
    }
    return FitSettings.model_validate(given | {"validation": validation_fraction, "seed": seed})


def ensemble(data: TrainingLog, out: Path, seed: int) -> Checkpoint:
    """The checkpoint in `out`: networks of MEMBERS seeds, of which no two ensembles share one."""
    members = []
    for n in range(1, MEMBERS + 1):
        folder = out / f"{MEMBER}-{n}"
        wanted = fit_settings(0.0, folder, (seed - 1) * MEMBERS + n)
        resume = load_checkpoint(folder) if (folder / INFO).exists() else None
        given = data, wanted.hyperparameters(), wanted.schedule(), folder
        members.append(trained(*given, resume=resume))
    write_ensemble(members, out)
    return load_checkpoint(out)


def measure(command: Measure) -> None:
    data = read_training_log(fit_settings(0.1, command.out, seed=1))
    validation, n_items = data.validation, len(data.catalogue)
    assert validation is not None
    neighbours = vmis_knn(data.train, n_items, **NEIGHBOURS)
    ranks = {VMIS: rank_targets(neighbours, validation, n_items)}
    rows = [{"model": VMIS, "seed": None, **with_intervals(ranks[VMIS])}]
    for seed in command.seeds:
        out = command.out / f"seed-{seed}"
        model = ModelPredictor(ensemble(data, out, seed).model)
        member = ModelPredictor(load_checkpoint(out / f"{MEMBER}-1").model)
        parts: dict[str, Predictor] = {MODEL: model, VMIS: neighbours}
        ranks[MEMBER] = rank_targets(member, validation, n_items)
        ranks[MODEL] = rank_targets(model, validation, n_items)
        ranks[BLENDED] = cross_fitted_ranks(parts, validation, n_items)
        for name in (MEMBER, MODEL, BLENDED):
            row = {"model": name, "seed": seed, **with_intervals(ranks[name])}
            if name == BLENDED:
                row |= {f"against_{part}": differences(ranks[name], ranks[part]) for part in parts}
            log.info("seed_done", **row)
            rows.append(row)
        if seed == command.seeds[0]:
            fit_blend(parts, validation, n_items).write(BLEND)
    split = (
        "the last 10 % of the training sessions; blends fitted on one half of them and measured on "
        "the other, in turn"
    )
    keep(RESULT, {"protocol": PROTOCOL, "split": split, "rows": rows})


def score(command: Score) -> dict[str, dict[str, float]]:
    checkpoint = load_checkpoint(command.out)
    catalogue = checkpoint.catalogue
    n_items = len(catalogue)
    known = build_sessions(read_log(DATASET)[0], catalogue).sessions
    asked = build_sessions(read_clicks(command.test, PUBLIC).clicks, catalogue).sessions
    if not asked.n_targets:
        raise TrainError(f"{command.test} has no session with two items of the training file")
    parts: dict[str, Predictor] = {
        MODEL: ModelPredictor(checkpoint.model),
        VMIS: vmis_knn(known, n_items, **NEIGHBOURS),
    }
    result = {}
    blend = load_blend(command.out / BLEND.name, parts)
    for name, predictor in ((MODEL, parts[MODEL]), (BLENDED, blend)):
        found = figures(rank_targets(predictor, asked, n_items))
        result[name] = {metric: found[metric] for metric in SHOWN}
        result[name]["predictions"] = int(found["predictions"])
    return result


if __name__ == "__main__":
    sys.exit(run_command(Diginetica, run))
