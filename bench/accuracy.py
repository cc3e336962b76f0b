"""How well a GRU and its blend predict RSC15-100k, beside baselines: ``make bench-accuracy``.

Epochs and the blend's weights are chosen on the newest sessions of the training file; then the same
parameters are trained on the whole file for as many epochs, and the test file is looked at once.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog
import torch

from bench.record import provenance
from bench.run import differences, with_intervals
from train.baselines import build_baselines
from train.baselines.vmis import vmis_knn
from train.blend.blend import Blend
from train.blend.fit import fit_blend
from train.data.clicks import Columns, read_clicks, split_by_time
from train.data.sessions import Sessions, build_sessions
from train.fit import Schedule, fit
from train.measure.evaluate import Predictor, rank_targets
from train.measure.predictor import ModelPredictor
from train.measure.ranks import Ranks
from train.network.checkpoint import load_checkpoint
from train.network.hyperparameters import Hyperparameters
from train.network.model import SessionModel
from train.network.presets import PRESETS
from train.progress import EpochProgress
from train.training_log import TrainingLog

DATASET = "rsc15-100k"
RESULT = Path(__file__).parent / "results" / f"{DATASET}.json"
VALIDATION_FRACTION = 0.12  # the training file's last half day
BLENDED = "blend"
SCHEDULE = Schedule(epochs=12, patience=4)

log = structlog.get_logger()


def train(training_log: TrainingLog, schedule: Schedule, folder: Path) -> None:
    """Fit the data set's preset; the checkpoint is in `folder`."""
    predictions = training_log.train.n_clicks - len(training_log.train)
    with EpochProgress(predictions, 1, schedule.epochs) as progress:
        hyperparameters = Hyperparameters.model_validate(PRESETS[DATASET])
        fit(training_log, hyperparameters, schedule, folder, watch=progress.watch())


def blend_parts(model: SessionModel, sessions: Sessions) -> dict[str, Predictor]:
    """The network and the neighbours of the same training sessions."""
    neighbours = vmis_knn(sessions, model.config.n_items)
    return {"gru": ModelPredictor(model), "vmis-knn": neighbours}


def main() -> int:
    """Train, evaluate, and write one row a model."""
    torch.set_num_threads(1)
    data = Path(os.environ.get("NEXTCLICK_DATA", "../shared/data")) / DATASET
    if not data.is_dir():
        print(
            f"{data} is not there: set NEXTCLICK_DATA to the folder that holds {DATASET}/",
            file=sys.stderr,
        )
        return 2
    clicks, test_clicks = (
        read_clicks(data / f"{part}.tsv.gz", Columns(preset="public")).clicks
        for part in ("train", "test")
    )
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        older, newer = split_by_time(clicks, VALIDATION_FRACTION)
        part = build_sessions(older)
        validation = build_sessions(newer, part.catalogue).sessions
        train(
            TrainingLog(part.sessions, validation, part.catalogue, None),
            SCHEDULE,
            Path(folder, "validated"),
        )
        chosen = load_checkpoint(Path(folder, "validated")).info
        fitted = fit_blend(
            blend_parts(load_checkpoint(Path(folder, "validated")).model, part.sessions),
            validation,
            len(part.catalogue),
        )
        log.info("blend_fitted", **fitted.weights.model_dump())
        log.info("epochs_chosen", epochs=chosen.epoch, metrics=chosen.metrics)

        whole = build_sessions(clicks)
        train(
            TrainingLog(whole.sessions, None, whole.catalogue, None),
            Schedule(epochs=chosen.epoch),
            Path(folder, "whole"),
        )
        model = load_checkpoint(Path(folder, "whole")).model
    log.info("trained", seconds=round(time.monotonic() - begin))

    n_items = len(whole.catalogue)
    test = build_sessions(test_clicks, whole.catalogue)
    log.info("test", dropped_clicks=test.dropped_clicks, dropped_sessions=test.dropped_sessions)
    parts = blend_parts(model, whole.sessions)
    predictors: dict[str, Predictor] = parts | {BLENDED: Blend(parts, fitted.weights)}
    rows: list[dict[str, Any]] = []
    measured = provenance()
    ranks: dict[str, Ranks] = {}
    for name, predictor in (predictors | build_baselines(whole.sessions, n_items)).items():
        ranks[name] = rank_targets(predictor, test.sessions, n_items)
        found = with_intervals(ranks[name])
        for own in parts if name == BLENDED else ():  # ranked before the blend
            found[f"against_{own}"] = differences(ranks[name], ranks[own])
        print(json.dumps({"model": name, **found}))
        rows.append({"model": name, **found, "measured": measured})
    RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
