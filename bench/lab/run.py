"""One run of the experiments: a setting trained with one seed, and what it reached.

Its weights are thrown away; figures go into the line that is kept, and places of the targets for
paired tests and intervals.
"""

import base64
import hashlib
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Int64

from bench.lab.grid import SHOP, SHOP_CLICKS, DataSet, Setting
from train.data.clicks import Columns, Filters, filter_clicks, read_clicks, split_by_time
from train.data.context import MISSING, learn_fields
from train.data.sessions import Catalogue, Indexed, Sessions, build_catalogue, build_sessions
from train.data.synthetic import ShopConfig, generate_shop
from train.fit.loop import Schedule, fit
from train.fit.resume import FitError
from train.fit.training_log import TrainingLog
from train.measure.evaluate import rank_targets
from train.measure.metrics import METRICS, figures
from train.measure.predictor import ModelPredictor
from train.measure.ranks import Ranks
from train.measure.significance import compare, estimate
from train.network.checkpoint import CheckpointInfo, load_checkpoint
from train.network.hyperparameters import Hyperparameters
from train.network.model import SessionModel

LIST_LENGTH = 20
"""Of the places that are kept: a target further behind has none."""

SHOWN = ("recall_at_20", "mrr_at_20")
"""What tables and log lines are of."""

KEPT = ("predictions", *METRICS, "novel_recall_at_20", "novel_mrr_at_20")

Line = dict[str, Any]
"""A run as it is kept: what it was and its figures, by split."""


class Parts(NamedTuple):
    """A data set's clicks: to learn from, to choose by, and to look at last."""

    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame | None


def load_parts(data: DataSet) -> Parts:
    """The clicks with all their columns. Exits with a sentence where the data are not there."""
    if data.name == SHOP:
        clicks = generate_shop(SHOP_CLICKS, ShopConfig(seed=1))
        known, test = split_by_time(clicks, data.validation_fraction)
        return Parts(*split_by_time(known, data.validation_fraction), test)
    folder = Path(os.environ.get("NEXTCLICK_DATA", "../shared/data")) / data.name
    if not folder.is_dir():
        sys.exit(f"{folder} is not there: set NEXTCLICK_DATA to the folder that holds {data.name}/")
    columns, test_path = Columns(preset="public"), folder / "test.tsv.gz"
    clicks = read_clicks(folder / "train.tsv.gz", columns).clicks
    newest = read_clicks(test_path, columns).clicks if test_path.exists() else None
    return Parts(*split_by_time(clicks, data.validation_fraction), newest)


class Logs(NamedTuple):
    """What a setting learns from, and what it is measured on."""

    training: TrainingLog
    """Its catalogue has the items with a click in the period it learns from."""
    catalogue: Catalogue
    """The items of the whole training part: all settings rank the same predictions."""
    splits: dict[str, Indexed]
    again: "Logs | None" = None
    """To learn from once more, for as many epochs, before the test is looked at."""


def build_logs(parts: Parts, data: DataSet, setting: Setting) -> Logs:
    """Sessions with the setting's context over its period."""
    older, newer, test = parts
    if test is None or not (data.refit or setting.refit):
        later = {"validation": newer} if test is None else {"validation": newer, "test": test}
        return _build(older, newer, later, data, setting)
    if not data.refit:  # its other settings are asked about items of the older part alone
        test = test.filter(pl.col("item_id").is_in(older["item_id"].unique().implode()))
    again = _build(pl.concat([older, newer]), None, {"test": test}, data, setting)
    return _build(older, newer, {"validation": newer}, data, setting)._replace(again=again)


def _build(
    known: pl.DataFrame,
    validation: pl.DataFrame | None,
    later: dict[str, pl.DataFrame],
    data: DataSet,
    setting: Setting,
) -> Logs:
    clicks = known
    if setting.last_days is not None:
        clicks = filter_clicks(known, Filters(last_days=setting.last_days)).clicks
    fields = learn_fields(clicks, setting.context, utc_offset_s=data.utc_offset_s)

    def build(log: pl.DataFrame, catalogue: Catalogue, seed: int) -> Indexed:
        indexed = build_sessions(log, catalogue, fields)
        columns = [setting.context.index(name) for name in setting.shuffled]
        return indexed._replace(sessions=shuffle_context(indexed.sessions, columns, seed))

    own, whole = build_catalogue(clicks), build_catalogue(known)
    train = build(clicks, own, 1).sessions
    newest = None if validation is None else build(validation, own, 2).sessions
    splits = {name: build(log, whole, 2) for name, log in later.items()}
    return Logs(TrainingLog(train, newest, own, None, fields), whole, splits)


def rows_in(whole: Catalogue, own: Catalogue) -> Int64[np.ndarray, "n"]:
    """Where the items of a catalogue stand in a larger one."""
    return np.array([whole.index[item_id] for item_id in own.item_ids], dtype=np.int64)


def shuffle_context(sessions: Sessions, columns: Iterable[int], seed: int) -> Sessions:
    """Clicks that say something in a column swap what they say, those that say nothing do not.

    So a first click is still told from the others, and every value is as frequent as before.
    """
    context = sessions.context.copy()
    for column in columns:
        says = np.flatnonzero(context[:, column] != MISSING)
        order = np.random.default_rng([seed, column]).permutation(len(says))
        context[says, column] = context[says[order], column]
    return replace(sessions, context=context)


def widen(model: SessionModel, known: Catalogue, catalogue: Catalogue) -> SessionModel:
    """The model over a larger catalogue: items it never saw are below all others, and say nothing
    when they are clicked."""
    if known.item_ids == catalogue.item_ids:
        return model
    wide = SessionModel(model.config.model_copy(update={"n_items": len(catalogue)}))
    row = torch.from_numpy(rows_in(catalogue, known))
    weights = model.state_dict()
    for name, old in weights.items():
        if name in ("item_embedding", "input_embedding", "output_bias"):
            below = torch.finfo(old.dtype).min if name == "output_bias" else 0.0
            weights[name] = old.new_full((len(catalogue), *old.shape[1:]), below)
            weights[name][row] = old
    wide.load_state_dict(weights)
    return wide.eval()


def key_of(data: DataSet, setting: Setting) -> str:
    """A name for all that decides a run besides the seed: a changed base makes other runs."""
    parameters = setting.hyperparameters(data, 0).model_dump(exclude={"seed"})
    said = (
        data.name,
        parameters,
        data.schedule.model_dump(mode="json"),
        setting.reading,
        data.validation_fraction,
        data.utc_offset_s,
        *(["refit"] if data.refit else []),
    )
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def measure(data: DataSet, setting: Setting, seed: int, logs: Logs) -> Line:
    """Train and rank; the line to keep.

    Seconds are the process's own: waiting for a core that others use is not in them. A training
    whose loss is no number any more has a line too: it says why instead of figures.
    """
    begin, key = time.process_time(), key_of(data, setting)
    hyperparameters = setting.hyperparameters(data, seed)
    line = {
        "dataset": data.name,
        "key": key,
        "seed": seed,
        "context": list(setting.context),
        "shuffled": list(setting.shuffled),
        "last_days": setting.last_days,
        "hyperparameters": hyperparameters.model_dump(mode="json", exclude={"seed"}),
    }
    ranked: list[tuple[Logs, SessionModel]] = []
    try:
        model, info = _train(logs, hyperparameters, data.schedule)
        ranked.append((logs, model))
        if logs.again is not None:
            model, _ = _train(logs.again, hyperparameters, Schedule(epochs=info.epoch))
            ranked.append((logs.again, model))
    except FitError as error:
        return {**line, "failed": str(error), "seconds": round(time.process_time() - begin, 1)}
    line |= {
        "epoch": info.epoch,
        "epochs": len(info.history),
        "clicks_per_second": round(median(record.clicks_per_second for record in info.history)),
    }
    for of, model in ranked:
        predictor = ModelPredictor(widen(model, of.training.catalogue, of.catalogue))
        for split, indexed in of.splits.items():
            ranks = rank_targets(predictor, indexed.sessions, len(of.catalogue))
            reached = figures(ranks)
            line[split] = {name: round(reached[name], 5) for name in KEPT}
            line["places"] = packed(ranks.rank)  # of the last split, which the tables are of
    return {**line, "seconds": round(time.process_time() - begin, 1)}


def _train(
    logs: Logs, hyperparameters: Hyperparameters, schedule: Schedule
) -> tuple[SessionModel, CheckpointInfo]:
    with tempfile.TemporaryDirectory() as name:
        folder, clock = Path(name), time.process_time
        info = fit(logs.training, hyperparameters, schedule, folder, clock=clock)
        return load_checkpoint(folder).model, info


def with_intervals(ranks: Ranks) -> dict[str, Any]:
    """The shown figures with their intervals, and how many predictions they are of."""
    (whole,) = estimate(ranks, SHOWN)
    result: dict[str, Any] = {"predictions": len(ranks)}
    for name, found in whole.figures.items():
        result[name] = round(found.value, 4)
        result[f"{name}_interval"] = [round(found.low, 4), round(found.high, 4)]
    return result


def differences(a: Ranks, b: Ranks) -> dict[str, Any]:
    """What `a` has over `b` in the shown figures, by a paired test."""
    return {metric: compare(a, b, metric)._asdict() for metric in SHOWN}


def packed(rank: Int64[np.ndarray, "P"]) -> str:
    """The places up to LIST_LENGTH as text, half a byte each: all that METRICS at 20 ask for."""
    places = np.where(rank <= LIST_LENGTH, rank, 0).astype(np.uint8)
    return base64.b64encode(zlib.compress(places.tobytes(), 9)).decode("ascii")


def unpacked(text: str) -> Int64[np.ndarray, "P"]:
    """The ranks that were packed; of a target without a place, the one behind the last."""
    places = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).astype(np.int64)
    return np.where(places > 0, places, LIST_LENGTH + 1)
