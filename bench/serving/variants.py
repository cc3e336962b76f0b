"""How fast and how exact each graph makes lists here: ``python -m bench.serving.variants``.

The weights are trained, one epoch of Diginetica's sessions with H = 100, since random ones are
easier to tell apart; the queries are those of real sessions. Both graphs are timed in turn, on one
core and in the process's own time; busy neighbours that take cache and memory still show.
"""

import dataclasses
import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import PositiveInt

from bench.datasets import folder_of
from bench.fitting import trained
from bench.provenance import RESULTS, keep
from export.__main__ import export_bundle
from export.parity import ParitySession
from stream.errors import StreamError
from stream.model.bundle import Bundle, load_bundle
from stream.model.scorer import FLOAT32, INT8, OnnxScorer, overlap
from train.command import Settings, TrainError, run_command
from train.fit.settings import FitSettings
from train.fit.training_log import read_training_log
from train.network.checkpoint import INFO, load_checkpoint

ROWS = (1, 16, 32, 64, 256)
K = 20
FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")
"""Of a processor, what decides how fast it multiplies integers."""


class VariantsSettings(Settings):
    """Train, export, and measure both ways to make a list."""

    sessions: PositiveInt = 4000
    """The newest sessions of the log, whose clicks are the queries."""
    rounds: PositiveInt = 60
    """Calls of each size; the fastest counts."""
    checkpoint: Path = Path("build/variants")
    """Folder of the checkpoint, which is trained if it is not there."""
    out: Path = RESULTS / "variants.json"
    """File of the figures."""


def run(settings: VariantsSettings) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as name:
        bundle, sessions = trained_bundle(Path(name), settings)
        if bundle.rank_int8 is None:
            raise TrainError("export left rank_int8.onnx out: expected an overlap of .999")
        int8_alone = dataclasses.replace(bundle, rank=bundle.rank_int8)
        scorers = {
            variant: OnnxScorer(dataclasses.replace(of, rank_int8=None))
            for variant, of in ((FLOAT32, bundle), (INT8, int8_alone))
        }
        query = queries(scorers[FLOAT32], sessions)
        began = time.perf_counter()
        ranking = OnnxScorer(bundle).ranking
        start_seconds = time.perf_counter() - began
    lists = {variant: scorer.rank(query) for variant, scorer in scorers.items()}
    listed, scores = lists[FLOAT32]
    found, found_scores = lists[INT8]
    same = listed == found
    result = {
        "processor_flags": processor_flags(),
        "n_items": bundle.manifest.n_items,
        "hidden_size": bundle.manifest.hidden_size,
        "n_recommendations": K,
        "overlap": {
            "queries": len(query),
            "of_top_20": round(overlap(listed, found), 6),
            "same_place": round(float(same.mean()), 6),
            "largest_score_difference": float(np.abs(scores - found_scores)[same].max()),
            "at_export": bundle.manifest.parity.int8_overlap,
        },
        "us_a_list": us_a_list(scorers, query, settings.rounds),
        "at_the_workers_start": {"seconds": round(start_seconds, 2), **ranking._asdict()},
    }
    keep(settings.out, result)
    print(json.dumps(result, indent=1))


def trained_bundle(folder: Path, settings: VariantsSettings) -> tuple[Bundle, list[ParitySession]]:
    """A bundle of a trained model, and the newest sessions of its log."""
    given = {
        "clicks": folder_of("diginetica-sessions") / "train.tsv.gz",
        "columns": "public",
        "validation": 0.0,
        "hidden_size": 100,
        "epochs": 1,
        "out": settings.checkpoint,
    }
    wanted = FitSettings.model_validate(given)
    data = read_training_log(wanted)
    if not (wanted.out / INFO).exists():
        trained(data, wanted.hyperparameters(), wanted.schedule(), wanted.out)
    checkpoint = load_checkpoint(wanted.out)
    log = data.train
    newest = [
        ParitySession(log.item_index[a:b], log.context[a:b])
        for a, b in pairwise(log.start[-settings.sessions - 1 :].tolist())
    ]
    return load_bundle(export_bundle(checkpoint, folder, K, newest[-1000:])), newest


def queries(scorer: OnnxScorer, sessions: list[ParitySession]) -> Float32[np.ndarray, "B D"]:
    """The query after every click of the sessions."""
    sessions = sorted(sessions, key=lambda session: len(session.item_index), reverse=True)
    state = np.zeros((len(sessions), scorer.state_size), np.float32)
    found = []
    for click in range(len(sessions[0].item_index)):
        going_on = [session for session in sessions if len(session.item_index) > click]
        item_index = np.array([session.item_index[click] for session in going_on])
        context = np.array([session.context[click] for session in going_on])
        query, state = scorer.encode(item_index, context, state[: len(going_on)])
        found.append(query)
    return np.concatenate(found)


def us_a_list(
    scorers: dict[str, OnnxScorer], query: Float32[np.ndarray, "B D"], rounds: int
) -> dict[str, dict[str, dict[int, float]]]:
    """By variant: in one call of so many rows, and as the worker cuts a batch of so many."""
    ways = [
        (variant, scorer, way, rows, scorer.ranking._replace(rows=most))
        for rows in ROWS
        for variant, scorer in scorers.items()
        for way, most in (("in_one_call", rows), ("as_served", scorer.ranking.rows))
    ]
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):  # the first warms up
        for (_, scorer, _, rows, ranking), taken in zip(ways, seconds, strict=True):
            scorer.ranking = ranking
            began = time.process_time()
            scorer.rank(query[:rows])
            taken.append(time.process_time() - began)
    result: dict[str, dict[str, dict[int, float]]] = {variant: {} for variant in scorers}
    for (variant, _, way, rows, _), taken in zip(ways, seconds, strict=True):
        result[variant].setdefault(way, {})[rows] = round(1e6 * min(taken[1:]) / rows, 1)
    return result


def processor_flags() -> list[str]:
    """Those of FLAGS that this processor has."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    return [flag for flag in FLAGS if flag in words]


if __name__ == "__main__":
    sys.exit(run_command(VariantsSettings, run, errors=(StreamError,)))
