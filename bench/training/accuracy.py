"""How well a GRU, its blends and baselines predict RSC15-100k: ``make bench-accuracy``.

Epochs and the blend's weights are chosen on the newest sessions of the training file; then the same
parameters are trained on the whole file for as many epochs, and the test file is looked at once.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import structlog
import torch

from bench.datasets import read_log
from bench.fitting import differences, trained, with_intervals
from bench.provenance import RESULTS, keep
from train.baselines.named import build_baselines
from train.baselines.neighbours import vmis_knn
from train.baselines.rules import decayed_transitions
from train.blend.blend import Blend
from train.blend.fit import fit_blend
from train.command import Settings, run_command
from train.data.clicks import split_by_time
from train.data.sessions import Sessions, build_sessions
from train.fit.loop import Schedule
from train.fit.training_log import TrainingLog
from train.measure.predictor import ModelPredictor
from train.measure.ranking import Predictor, Ranks, rank_targets
from train.network.hyperparameters import Hyperparameters
from train.network.model import SessionModel
from train.network.presets import PRESETS

DATASET = "rsc15-100k"
RESULT = RESULTS / f"{DATASET}.json"
VALIDATION_FRACTION = 0.12  # the training file's last half day
DECAYED = {"half_life_s": 480_283, "popularity_half_life_s": 120_071, "popularity_weight": 0.1}
"""Chosen on the validation's sessions by ``python -m bench.training.baselines``."""
BLENDS = {"blend": ("gru", "vmis-knn", "decayed-markov"), "blend of two": ("gru", "vmis-knn")}
"""GRU and neighbours lack what was clicked lately: cross-fitted on the validation's sessions, the
third part turns a gain of .0020 MRR@20 [-.0006, +.0046] into .0042 [+.0017, +.0065]."""
SCHEDULE = Schedule(epochs=12, patience=4)

log = structlog.get_logger()


class AccuracySettings(Settings):
    """Train, measure and keep the figures of every model in bench/results/rsc15-100k.json."""


def blend_parts(model: SessionModel, sessions: Sessions) -> dict[str, Predictor]:
    """The network, and what is counted in the same training sessions."""
    n_items = model.config.n_items
    return {
        "gru": ModelPredictor(model),
        "vmis-knn": vmis_knn(sessions, n_items),
        "decayed-markov": decayed_transitions(sessions, n_items, **DECAYED),
    }


def run(settings: AccuracySettings) -> None:
    torch.set_num_threads(1)
    clicks, test_clicks = read_log(DATASET)
    assert test_clicks is not None
    hyperparameters = Hyperparameters.model_validate(PRESETS[DATASET])
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        older, newer = split_by_time(clicks, VALIDATION_FRACTION)
        part = build_sessions(older)
        validation = build_sessions(newer, part.catalogue).sessions
        training_log = TrainingLog(part.sessions, validation, part.catalogue, None)
        validated = trained(training_log, hyperparameters, SCHEDULE, Path(folder, "validated"))
        parts, weights = blend_parts(validated.model, part.sessions), {}
        for blend, names in BLENDS.items():
            own_parts = {name: parts[name] for name in names}
            fitted = fit_blend(own_parts, validation, len(part.catalogue))
            weights[blend] = fitted.weights
            log.info("blend_fitted", **fitted.weights.model_dump())
        epochs = validated.info.epoch
        log.info("epochs_chosen", epochs=epochs, metrics=validated.info.metrics)

        whole = build_sessions(clicks)
        training_log = TrainingLog(whole.sessions, None, whole.catalogue, None)
        again = Path(folder, "whole")
        model = trained(training_log, hyperparameters, Schedule(epochs=epochs), again).model
    log.info("trained", seconds=round(time.monotonic() - begin))

    n_items = len(whole.catalogue)
    test = build_sessions(test_clicks, whole.catalogue)
    log.info("test", dropped_clicks=test.dropped_clicks, dropped_sessions=test.dropped_sessions)
    parts = blend_parts(model, whole.sessions)
    blends = {blend: Blend(parts, weights[blend]) for blend in BLENDS}
    rows: list[dict[str, Any]] = []
    ranks: dict[str, Ranks] = {}
    for name, predictor in (parts | blends | build_baselines(whole.sessions, n_items)).items():
        ranks[name] = rank_targets(predictor, test.sessions, n_items)
        row = {"model": name, **with_intervals(ranks[name])}
        for own in BLENDS.get(name, ()):  # ranked before
            row[f"against_{own}"] = differences(ranks[name], ranks[own])
        print(json.dumps(row))
        rows.append(row)
    keep(RESULT, {"rows": rows})


if __name__ == "__main__":
    sys.exit(run_command(AccuracySettings, run))
