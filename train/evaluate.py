"""``python -m train evaluate``: a checkpoint and baselines measured on a click log."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import structlog
import torch
from jaxtyping import Int64
from pydantic import Field, PositiveInt, model_validator

from train.baselines.named import COMPARED, BaselineName, build_baseline, is_baseline
from train.baselines.popularity import item_support
from train.blend.blend import load_blend, load_weights
from train.command import Settings, TrainError
from train.data.clicks import read_clicks
from train.data.sessions import Sessions, build_sessions
from train.fit.training_log import ColumnNames, columns_of, columns_of_log, warn_unless_newer
from train.folders import make_folder
from train.measure.metrics import lost_predictions
from train.measure.predictor import MODEL, ModelPredictor
from train.measure.ranking import PROTOCOL, Predictor
from train.measure.results import (
    Training,
    check_replaceable,
    describe_log,
    evaluate,
    save_evaluation,
)
from train.network.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint

BLEND = "blend"
"""A blend's name beside its parts in figures."""

log = structlog.get_logger()


class EvaluateSettings(Settings):
    """Measure a checkpoint on a click log; figures as JSON on stdout."""

    checkpoint: Path
    """Folder that python -m train fit wrote."""
    clicks: str | Path
    """Click log to predict, newer than the training's; its sessions are cut as the training's."""
    columns: ColumnNames = Field(default={})
    """Names of the logs' columns, as for fit: public, or session=sid,item=sku,time=ts; the column
    of the event types is the training's where event_type is not among them."""
    train_clicks: str | Path | None = None
    """Log the checkpoint was trained on, to measure baselines that learn from it as well."""
    baselines: tuple[BaselineName, ...] = COMPARED
    """Which baselines to measure, by name: pop, recent-pop, s-pop, markov, decayed-markov,
    association-rules, sequential-rules, item-knn, vmis-knn, stan, als or bpr; with parameters as in
    vmis-knn:m=1000:k=200."""
    blend: Path | None = None
    """Blend to measure too, a file that python -m train blend wrote; its baselines learn from
    train_clicks."""
    out: Path | None = None
    """Folder to keep the evaluations in, one per checkpoint, for python -m train report."""
    name: str = ""
    """What a report calls the log; unset: the file's name."""
    threads: PositiveInt = 1
    """Threads of PyTorch."""

    @model_validator(mode="after")
    def _baselines_have_a_log(self) -> "EvaluateSettings":
        if self.train_clicks is None and self.blend is not None:
            raise ValueError(
                f"blend={self.blend} requires train_clicks, the log its baselines learn from"
            )
        if self.train_clicks is None and "baselines" in self.model_fields_set:
            given = ",".join(self.baselines)
            raise ValueError(f"baselines={given} requires train_clicks, the log they learn from")
        return self


def run_evaluate(settings: EvaluateSettings) -> None:
    """Print the figures of a checkpoint, and of baselines where their log is given. With `out`,
    every evaluation is kept there, for `report` and for paired tests."""
    torch.set_num_threads(settings.threads)
    checkpoint = load_checkpoint(settings.checkpoint)
    if settings.out is not None:
        make_folder(settings.out)
    info, catalogue = checkpoint.info, checkpoint.catalogue
    clicks = read_as_trained(settings.clicks, settings.columns, info)
    indexed = build_sessions(clicks, catalogue, info.model.context)
    if not indexed.sessions.n_targets:
        raise TrainError(
            f"{settings.clicks} has no session with at least two clicks on items known to "
            f"{settings.checkpoint}: {indexed.dropped_clicks} clicks were dropped, and nothing is "
            "left to measure"
        )
    warn_unless_newer(settings.clicks, indexed.sessions, info.training.last_timestamp_ms)
    predictors: dict[str, Predictor] = {MODEL: ModelPredictor(checkpoint.model)}
    if settings.train_clicks is None:
        support = _known_support(checkpoint)
    else:
        learnt = _training_sessions(settings.train_clicks, settings, checkpoint)
        support = item_support(learnt, len(catalogue))
        blended = () if settings.blend is None else load_weights(settings.blend).parts
        names = dict.fromkeys((*settings.baselines, *filter(is_baseline, blended)))
        predictors |= {name: build_baseline(name, learnt, len(catalogue)) for name in names}
        if settings.blend is not None:
            predictors[BLEND] = load_blend(settings.blend, predictors)
    counts = describe_log(
        settings.name or Path(settings.clicks).name,
        indexed,
        lost_predictions(clicks, indexed.sessions),
        clicks,
    )
    trainings = {MODEL: Training(epoch=info.epoch, history=info.history, health=info.health)}
    if settings.out is not None:
        for name in predictors:
            check_replaceable(settings.out, name, counts, trainings.get(name))
    found = {}
    for name, predictor in predictors.items():
        evaluation = evaluate(
            name, predictor, indexed.sessions, counts, support, training=trainings.get(name)
        )
        found[name] = evaluation.figures()
        if settings.out is not None:
            log.info("evaluation_kept", path=str(save_evaluation(settings.out, evaluation)))
    result = {
        "protocol": PROTOCOL,
        "sessions": len(indexed.sessions),
        "dropped_clicks": indexed.dropped_clicks,
        "dropped_sessions": indexed.dropped_sessions,
        "figures": found,
    }
    print(json.dumps(result, indent=1))


def read_as_trained(
    path: str | Path, columns: Mapping[str, str], info: CheckpointInfo
) -> pl.DataFrame:
    """The good clicks of a log, read as the checkpoint's own was: sessions, event types, context.
    Raises TrainError for a log that cannot be read or lacks a column, before anything is read."""
    own = columns_of({"event_type": info.event_types.column, **columns})
    context = [field.name for field in info.model.context if field.kind == "column"]
    column = columns_of_log(path, own, context).event_type
    return read_clicks(
        path,
        own,
        idle_timeout_s=info.idle_timeout_s,
        event_types=info.event_types.model_copy(update={"column": column}),
        allowed_lateness_s=info.allowed_lateness_s,
    ).clicks


def _training_sessions(
    path: str | Path, settings: EvaluateSettings, checkpoint: Checkpoint
) -> Sessions:
    """What baselines learn from: the sessions of the log over the checkpoint's items."""
    info = checkpoint.info
    clicks = read_as_trained(path, settings.columns, info)
    sessions = build_sessions(clicks, checkpoint.catalogue).sessions
    if not sessions.n_clicks:
        raise TrainError(
            f"{path} has no session with at least two clicks on items known to "
            f"{settings.checkpoint}: baselines have nothing to learn from"
        )
    if sessions.n_clicks != info.training.clicks:
        log.warning(
            "baselines_learn_from_other_clicks",
            train_clicks=sessions.n_clicks,
            model=info.training.clicks,
            note="a model that validated on the log's newest sessions did not learn from them",
        )
    return sessions


def _known_support(checkpoint: Checkpoint) -> Int64[np.ndarray, "N"]:
    """Clicks on every item in training, as far as the checkpoint knows them: its popular items."""
    support = np.zeros(len(checkpoint.catalogue), dtype=np.int64)
    for popular in checkpoint.info.popular:
        support[popular.item_index] = int(popular.score)
    if len(checkpoint.info.popular) < len(support):
        log.warning(
            "popularity_known_in_part",
            items=len(support),
            known=len(checkpoint.info.popular),
            note="figures by popularity treat all other items as never clicked; set --train-clicks",
        )
    return support
