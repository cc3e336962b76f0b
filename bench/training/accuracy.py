"""How well a GRU and its blends predict RSC15-100k, beside baselines: ``make bench-accuracy``.

Epochs and the blend's weights are chosen on the newest sessions of the training file; then the same
parameters are trained on the whole file for as many epochs, and the test file is looked at once.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
import torch

from bench.lab.run import differences, with_intervals
from bench.provenance import provenance
from train.baselines.named import build_baselines
from train.baselines.rules import decayed_transitions
from train.baselines.vmis import vmis_knn
from train.blend.blend import Blend
from train.blend.fit import fit_blend
from train.data.clicks import Columns, read_clicks, split_by_time
from train.data.sessions import Sessions, build_sessions
from train.fit.loop import Schedule, fit
from train.fit.training_log import TrainingLog
from train.measure.predictor import ModelPredictor
from train.measure.ranking import Predictor, rank_targets
from train.measure.ranks import Ranks
from train.network.checkpoint import load_checkpoint
from train.network.hyperparameters import Hyperparameters
from train.network.model import SessionModel
from train.network.presets import PRESETS
from train.progress import EpochProgress

DATASET = "rsc15-100k"
RESULT = Path(__file__).parents[1] / "results" / f"{DATASET}.json"
VALIDATION_FRACTION = 0.12  # the training file's last half day
DECAYED = {"half_life_s": 480_283, "popularity_half_life_s": 120_071, "popularity_weight": 0.1}
"""Chosen on the validation's sessions by ``python -m bench.training.baselines``."""
BLENDS = {
    "blend": ("gru", "vmis-knn", "decayed-markov"),
    "blend of two": ("gru", "vmis-knn"),
}
"""What was clicked lately is what GRU and neighbours lack: cross-fitted on the validation's
sessions the third part turns a gain of .0020 MRR@20 [-.0006, +.0046] into .0042 [+.0017, +.0065].
"""
SCHEDULE = Schedule(epochs=12, patience=4)

log = structlog.get_logger()


def train(training_log: TrainingLog, schedule: Schedule, folder: Path) -> None:
    """Fit the data set's preset; the checkpoint is in `folder`."""
    predictions = training_log.train.n_clicks - len(training_log.train)
    with EpochProgress(predictions, 1, schedule.epochs) as progress:
        hyperparameters = Hyperparameters.model_validate(PRESETS[DATASET])
        fit(training_log, hyperparameters, schedule, folder, watch=progress.watch())


def blend_parts(model: SessionModel, sessions: Sessions) -> dict[str, Predictor]:
    """The network, and what is counted in the same training sessions."""
    n_items = model.config.n_items
    return {
        "gru": ModelPredictor(model),
        "vmis-knn": vmis_knn(sessions, n_items),
        "decayed-markov": decayed_transitions(sessions, n_items, **DECAYED),
    }


def of(blend: str, parts: Mapping[str, Predictor]) -> dict[str, Predictor]:
    """The blend's own of all parts."""
    return {name: parts[name] for name in BLENDS[blend]}


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
        validated = load_checkpoint(Path(folder, "validated"))
        chosen, parts = validated.info, blend_parts(validated.model, part.sessions)
        weights = {}
        for blend in BLENDS:
            fitted = fit_blend(of(blend, parts), validation, len(part.catalogue))
            weights[blend] = fitted.weights
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
    blends = {blend: Blend(of(blend, parts), weights[blend]) for blend in BLENDS}
    baselines = build_baselines(whole.sessions, n_items)
    rows: list[dict[str, Any]] = []
    measured = provenance()
    ranks: dict[str, Ranks] = {}
    for name, predictor in (parts | blends | baselines).items():
        ranks[name] = rank_targets(predictor, test.sessions, n_items)
        found = with_intervals(ranks[name])
        for own in BLENDS.get(name, ()):  # ranked before
            found[f"against_{own}"] = differences(ranks[name], ranks[own])
        print(json.dumps({"model": name, **found}))
        rows.append({"model": name, **found, "measured": measured})
    RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
