"""``python -m train blend``: checkpoints and baselines in, the weights of their blend out."""

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import structlog
import torch
from pydantic import Field, PositiveInt, model_validator

from train.baselines.named import BaselineName, build_baseline
from train.blend.fit import cross_fitted_ranks, fit_blend
from train.command import Settings, TrainError
from train.data.clicks import read_clicks, split_by_time
from train.data.sessions import build_catalogue, build_sessions
from train.ensemble import check_same_log
from train.evaluate import BLEND, read_as_trained
from train.fit.training_log import ColumnNames, Validation, columns_of, warn_unless_newer
from train.folders import make_folder
from train.measure.metrics import figures
from train.measure.predictor import MODEL, ModelPredictor
from train.measure.ranking import PROTOCOL, Predictor, rank_targets
from train.network.checkpoint import Checkpoint, load_checkpoint

log = structlog.get_logger()


class BlendSettings(Settings):
    """Fit the weights of a blend of checkpoints and baselines; its figures as JSON on stdout."""

    clicks: str | Path
    """Click log that the baselines learn from: the one the checkpoints were trained on."""
    validation: Validation = 0.1
    """What to fit the weights on, which no part has learnt from: a share of the sessions of clicks,
    the newest, which fit holds back as well, or a newer log."""
    columns: ColumnNames = Field(default={})
    """Names of the logs' columns, as for fit: public, or session=sid,item=sku,time=ts."""
    checkpoints: tuple[Path, ...] = ()
    """Folders that python -m train fit wrote, with the same items and context. Their parts are
    called model, model-2, model-3 and so on."""
    baselines: tuple[BaselineName, ...] = ()
    """Baselines by name, as for python -m train evaluate: vmis-knn:m=1000:k=200,markov."""
    idle_timeout_s: PositiveInt | None = None
    """Cut sessions at longer gaps; only without checkpoints, which bring their own."""
    out: Path
    """File to write: the parts' names, transforms and weights as JSON."""
    threads: PositiveInt = 1
    """Threads of PyTorch."""

    @model_validator(mode="after")
    def _parts_make_a_blend(self) -> "BlendSettings":
        n_parts = len(self.checkpoints) + len(set(self.baselines))
        if n_parts < 2:
            raise ValueError(
                "a blend needs at least 2 different models; checkpoints and baselines name "
                f"{n_parts}"
            )
        if self.validation == 0:
            raise ValueError("validation=0 leaves nothing to fit the weights on")
        if self.checkpoints and self.idle_timeout_s is not None:
            raise ValueError(
                f"idle_timeout_s={self.idle_timeout_s} cannot be combined with checkpoints: their "
                "sessions are cut as they were in training"
            )
        return self


def run_blend(settings: BlendSettings) -> None:
    """Write the blend, and print what it and its parts reach on the validation sessions.

    The blend's figures are cross-fitted: each half of the sessions is ranked with weights fitted
    on the other half. The weights in the file are fitted on both.
    """
    torch.set_num_threads(settings.threads)
    if settings.out.exists():
        raise TrainError(f"out={settings.out} already exists: choose another file, or remove it")
    make_folder(settings.out.parent)
    checkpoints = [load_checkpoint(folder) for folder in settings.checkpoints]
    for other in checkpoints[1:]:
        check_same_log(checkpoints[0], other)
        if other.info.model.context != checkpoints[0].info.model.context:
            raise TrainError(
                f"{other.folder} and {checkpoints[0].folder} have different context fields"
            )
    clicks = _read(settings.clicks, settings, checkpoints)
    if isinstance(settings.validation, float):
        clicks, newer = split_by_time(clicks, settings.validation)
        source: str | Path = f"the newest sessions of {settings.clicks}"
    else:
        source = settings.validation
        newer = _read(source, settings, checkpoints)
    catalogue = checkpoints[0].catalogue if checkpoints else build_catalogue(clicks)
    fields = checkpoints[0].info.model.context if checkpoints else ()
    learnt = build_sessions(clicks, catalogue).sessions
    asked = build_sessions(newer, catalogue, fields).sessions
    for what, n in ((settings.clicks, learnt.n_clicks), (source, asked.n_targets)):
        if not n:
            raise TrainError(f"found no session with a next click on a known item in {what}")
    for checkpoint in checkpoints:
        warn_unless_newer(source, asked, checkpoint.info.training.last_timestamp_ms)

    parts: dict[str, Predictor] = {
        f"{MODEL}-{n}" if n > 1 else MODEL: ModelPredictor(checkpoint.model)
        for n, checkpoint in enumerate(checkpoints, start=1)
    }
    parts |= {name: build_baseline(name, learnt, len(catalogue)) for name in settings.baselines}
    fit_blend(parts, asked, len(catalogue)).write(settings.out)
    log.info("blend_written", path=str(settings.out))
    ranks = {name: rank_targets(part, asked, len(catalogue)) for name, part in parts.items()}
    ranks[BLEND] = cross_fitted_ranks(parts, asked, len(catalogue))
    result = {
        "protocol": PROTOCOL,
        "sessions": len(asked),
        "figures": {name: figures(found) for name, found in ranks.items()},
    }
    print(json.dumps(result, indent=1))


def _read(
    path: str | Path, settings: BlendSettings, checkpoints: Sequence[Checkpoint]
) -> pl.DataFrame:
    if checkpoints:
        return read_as_trained(path, settings.columns, checkpoints[0].info)
    return read_clicks(
        path, columns_of(settings.columns), idle_timeout_s=settings.idle_timeout_s
    ).clicks
