"""One run of the experiments: a setting trained with one seed, and what it reached.

Figures go into the line that is kept. The weights are thrown away; the targets' ranks, of which
intervals and paired tests are made, stay outside the repository.
"""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Int64, UInt8

from bench.datasets import read_log
from bench.fitting import SHOWN, shown, trained
from bench.lab.grid import BASE, SYNTHETIC, SYNTHETIC_CLICKS, DataSet, Setting
from train.data.clicks import Filters, filter_clicks, split_by_time
from train.data.context import MISSING, learn_fields
from train.data.sessions import Catalogue, Indexed, Sessions, build_catalogue, build_sessions
from train.data.synthetic import SyntheticConfig, generate_synthetic
from train.fit.loop import Schedule
from train.fit.resume import FitError
from train.fit.training_log import TrainingLog
from train.measure.predictor import ModelPredictor
from train.measure.ranking import rank_targets
from train.network.model import SessionModel

KEPT = (*SHOWN, "ndcg_at_20", "novel_recall_at_20", "novel_mrr_at_20")
LONGEST_LIST = 20
"""Ranks beyond it are kept as one more: no kept metric tells them apart."""

Line = dict[str, Any]
"""A run as it is kept: what it was, and its figures by split."""


class Parts(NamedTuple):
    """A data set's clicks: to learn from, to choose by, and to look at last."""

    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame | None


def load_parts(data: DataSet) -> Parts:
    """The clicks with all their columns. Raises TrainError where the data set is missing."""
    test: pl.DataFrame | None
    if data.name == SYNTHETIC:
        clicks = generate_synthetic(SYNTHETIC_CLICKS, SyntheticConfig(seed=1))
        known, test = split_by_time(clicks, data.validation_fraction)
    else:
        known, test = read_log(data.name)
    return Parts(*split_by_time(known, data.validation_fraction), test)


class Logs(NamedTuple):
    """What a training and the evaluations of its model need."""

    training: TrainingLog
    """Over the items with a click in the period it learns from."""
    catalogue: Catalogue
    """The items of the whole training part: all settings rank the same predictions."""
    splits: dict[str, Indexed]
    again: "Logs | None" = None
    """To train on once more, for as many epochs, before the test is looked at."""


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


def shuffle_context(sessions: Sessions, columns: Iterable[int], seed: int) -> Sessions:
    """Shuffle the values of some columns among the clicks that have one.

    So a first click still differs from the others, and every value is as frequent as before.
    """
    context = sessions.context.copy()
    for column in columns:
        present = np.flatnonzero(context[:, column] != MISSING)
        order = np.random.default_rng([seed, column]).permutation(len(present))
        context[present, column] = context[present[order], column]
    return replace(sessions, context=context)


def widen(model: SessionModel, known: Catalogue, catalogue: Catalogue) -> SessionModel:
    """The model over a larger catalogue: items it never saw rank below all others, and clicks on
    them tell it nothing."""
    if known.item_ids == catalogue.item_ids:
        return model
    wide = SessionModel(model.config.model_copy(update={"n_items": len(catalogue)}))
    row = torch.tensor([catalogue.index[item_id] for item_id in known.item_ids])
    weights = model.state_dict()
    for name, old in weights.items():
        if name in ("item_embedding", "input_embedding", "output_bias"):
            below = torch.finfo(old.dtype).min if name == "output_bias" else 0.0
            weights[name] = old.new_full((len(catalogue), *old.shape[1:]), below)
            weights[name][row] = old
    wide.load_state_dict(weights)
    return wide.eval()


def key_of(data: DataSet, setting: Setting) -> str:
    """How a setting differs from the data set's base; it names a run, together with the seed."""
    base, own = (of.hyperparameters(data, 0).model_dump() for of in (BASE, setting))
    words = [f"{name}={value}" for name, value in own.items() if value != base[name]]
    for name in ("context", "shuffled"):
        if fields := getattr(setting, name):
            words.append(f"{name}={','.join(fields)}")
    if setting.last_days is not None:
        words.append(f"last_days={setting.last_days:g}")
    if setting.refit:
        words.append("refit")
    return " ".join(sorted(words)) or "base"


def measure(
    data: DataSet, setting: Setting, seed: int, logs: Logs, ranks_path: Path | None = None
) -> Line:
    """Train and rank; the line to keep. The last split's ranks go to `ranks_path` (.npy).

    Seconds are the process's own, without those in which it waited for a core. The line of a
    training whose loss became NaN or infinite has the reason instead of figures.
    """
    begin, hyperparameters = time.process_time(), setting.hyperparameters(data, seed)
    line: Line = {"key": key_of(data, setting), "seed": seed}
    try:
        first = trained(logs.training, hyperparameters, data.schedule)
        info, ranked = first.info, [(logs, first.model)]
        if logs.again is not None:
            again = trained(logs.again.training, hyperparameters, Schedule(epochs=info.epoch))
            ranked.append((logs.again, again.model))
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
            line[split] = shown(ranks, KEPT)
    if ranks_path is not None:
        ranks_path.parent.mkdir(parents=True, exist_ok=True)
        np.save(ranks_path, shortened(ranks.rank))
    return {**line, "seconds": round(time.process_time() - begin, 1)}


def shortened(rank: Int64[np.ndarray, "P"]) -> UInt8[np.ndarray, "P"]:
    """The ranks in a byte each, those beyond LONGEST_LIST as one more."""
    return np.asarray(np.minimum(rank, LONGEST_LIST + 1), dtype=np.uint8)
