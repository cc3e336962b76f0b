"""The commands on click logs: `fit` trains, `evaluate` measures, `shop` makes a log up."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import structlog
import torch

from train.baselines import BASELINES, build_baselines, item_support
from train.data.clicks import read_clicks, split_by_time, write_clicks
from train.data.oracle import score_oracle
from train.data.sessions import build_sessions
from train.data.synthetic import generate_shop
from train.fit.loop import fit
from train.fit.resume import (
    FitError,
    check_context,
    check_hyperparameters,
    check_reading,
    check_warm_start,
)
from train.fit.settings import EvaluateSettings, FitSettings, ShopSettings
from train.fit.training_log import (
    TrainingLog,
    check_context_columns,
    read_training_log,
    warn_unless_newer,
)
from train.folders import locked, make_folder
from train.measure.evaluate import PROTOCOL, Predictor, rank_targets
from train.measure.metrics import figures, lost_predictions
from train.measure.predictor import ModelPredictor
from train.measure.results import (
    Training,
    check_replaceable,
    describe_log,
    evaluate,
    save_evaluation,
)
from train.network.checkpoint import INFO, Checkpoint, load_checkpoint
from train.network.presets import LARGE_LOG, sizes_for
from train.progress import EpochProgress
from train.report import PLOT, plot_training, write_figures

MODEL = "model"
"""The name of the network among the baselines."""

SHOWN = ("recall_at_20", "mrr_at_20")

log = structlog.get_logger()


def run_fit(settings: FitSettings) -> None:
    """Read the log, train, and write the checkpoint with its figures and plot."""
    resume = load_checkpoint(settings.out) if settings.resume else None
    if resume is None:
        _check_free(settings.out)
    elif not resume.info.history:
        raise FitError(
            f"{settings.out} is an ensemble, which keeps no state of its training: begin from it "
            "with --warm-start"
        )
    torch.set_num_threads(1)  # steps are small: a second thread gains little
    warm_start = None if settings.warm_start is None else load_checkpoint(settings.warm_start)
    if resume is not None:
        chosen = _sizes(resume.info.training.clicks, warm_start)
        check_hyperparameters(resume, settings.hyperparameters(chosen))
        check_reading(resume, settings.log_event_types, settings.idle_timeout_s)
    if warm_start is not None:
        check_warm_start(warm_start, settings.hyperparameters(_sizes(0, warm_start)))
    elif resume is not None:
        check_context(resume, settings.context, settings.utc_offset_s)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise FitError("device=cuda, but PyTorch finds no such device: use cpu")
    training_log = read_training_log(
        settings,
        known=None if warm_start is None else warm_start.catalogue,
        fields=None if warm_start is None else warm_start.info.model.context,
    )
    make_folder(settings.out)  # before hours of training, not after
    log.info("log_read", **training_log.description().model_dump())
    busy = f"{settings.out} is in use by another training run: choose another --out"
    with locked(settings.out, busy):
        if resume is None:
            _check_free(settings.out)  # another run may have ended since
        _fit(settings, training_log, resume, warm_start)


def _sizes(n_clicks: int, warm_start: Checkpoint | None) -> dict[str, float]:
    """Sizes for a log of so many training clicks; a warm start keeps the width of its weights."""
    sizes = sizes_for(n_clicks)
    if warm_start is not None:
        sizes["hidden_size"] = warm_start.info.model.hidden_size
    return sizes


def _fit(
    settings: FitSettings,
    training_log: TrainingLog,
    resume: Checkpoint | None,
    warm_start: Checkpoint | None,
) -> None:
    n_clicks = training_log.train.n_clicks
    chosen = settings.not_given(_sizes(n_clicks, warm_start))
    if chosen:
        than = "fewer than" if n_clicks < LARGE_LOG else "at least"
        log.info("chosen_by_log_size", **chosen, note=f"{than} {LARGE_LOG:,} training clicks")
    hyperparameters, schedule = settings.hyperparameters(chosen), settings.schedule()
    baselines = build_baselines(training_log.train, len(training_log.catalogue))

    first_epoch = 1 if resume is None else min(len(resume.info.history) + 1, schedule.epochs)
    predictions = n_clicks - len(training_log.train)
    with EpochProgress(predictions, first_epoch, schedule.epochs) as progress:
        info = fit(
            training_log,
            hyperparameters,
            schedule,
            settings.out,
            resume=resume,
            warm_start=warm_start,
            watch=progress.watch(),
            device=settings.device,
        )
    validation = {MODEL: info.metrics}
    if training_log.validation is not None:
        for name, baseline in baselines.items():
            ranks = rank_targets(baseline, training_log.validation, len(training_log.catalogue))
            validation[name] = figures(ranks, training_log.lost)
    write_figures(settings.out, info, validation)
    plot_training(
        settings.out / PLOT,
        info.history,
        info.epoch,
        {name: validation[name] for name in baselines if name in validation},
    )
    for name, values in validation.items():
        shown = (f"{part}{metric}" for part in ("", "novel_") for metric in SHOWN)
        log.info("figures", model=name, **{n: round(values[n], 4) for n in shown if n in values})
    log.info("checkpoint_written", folder=str(settings.out), epoch=info.epoch)


def run_evaluate(settings: EvaluateSettings) -> None:
    """Print the figures of a checkpoint, and of the baselines where their log is named.

    With `out` everything measured is kept there, for `report` and for paired tests.
    """
    torch.set_num_threads(settings.threads)
    checkpoint = load_checkpoint(settings.checkpoint)
    if settings.out is not None:
        make_folder(settings.out)
    info, catalogue = checkpoint.info, checkpoint.catalogue

    def read(path: str | Path) -> pl.DataFrame:
        check_context_columns(path, info.model.context)
        return read_clicks(
            path,
            settings.columns,
            idle_timeout_s=info.idle_timeout_s,
            event_types=info.event_types,
        ).clicks

    clicks = read(settings.clicks)
    indexed = build_sessions(clicks, catalogue, info.model.context)
    if not indexed.sessions.n_targets:
        raise FitError(
            f"{settings.clicks} has no session of two items that {settings.checkpoint} knows: "
            f"{indexed.dropped_clicks} clicks were dropped, and nothing is left to measure"
        )
    warn_unless_newer(settings.clicks, indexed.sessions, info.training.last_timestamp_ms)
    predictors: dict[str, Predictor] = {MODEL: ModelPredictor(checkpoint.model)}
    support = np.zeros(len(catalogue), dtype=np.int64)
    for popular in info.popular:
        support[popular.item_index] = int(popular.score)
    if settings.train_clicks is not None:
        known = build_sessions(read(settings.train_clicks), catalogue).sessions
        if not known.n_clicks:
            raise FitError(
                f"{settings.train_clicks} has no session of two items that {settings.checkpoint} "
                "knows: there is nothing to count baselines from"
            )
        support = item_support(known, len(catalogue))
        if known.n_clicks != info.training.clicks:
            log.warning(
                "baselines_learn_from_other_clicks",
                train_clicks=known.n_clicks,
                model=info.training.clicks,
                note="a log's newest sessions are held back from the model that validates on them",
            )
        predictors |= {name: BASELINES[name](known, len(catalogue)) for name in settings.baselines}
    elif len(info.popular) < len(catalogue):
        log.warning(
            "popularity_known_in_part",
            items=len(catalogue),
            known=len(info.popular),
            note="figures by popularity take the others as never clicked; name --train-clicks",
        )
    counts = describe_log(
        settings.name or Path(settings.clicks).name,
        indexed,
        lost_predictions(clicks, indexed.sessions),
        clicks,
    )
    trainings = dict.fromkeys(predictors) | {
        MODEL: Training(epoch=info.epoch, history=info.history)
    }
    if settings.out is not None:
        for name, training in trainings.items():
            check_replaceable(settings.out, name, counts, training)
    found = {}
    for name, predictor in predictors.items():
        evaluation = evaluate(
            name, predictor, indexed.sessions, counts, support, training=trainings[name]
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


def run_shop(settings: ShopSettings) -> None:
    """Write a shop's log, and print what its oracle reaches on the sessions `fit` validates on."""
    config = settings.config()
    clicks = generate_shop(settings.clicks, config)
    write_clicks(clicks, settings.out)
    older, newer = split_by_time(clicks, FitSettings.model_fields["validation"].default)
    oracle = score_oracle(config, newer, older["item_id"].unique().to_list())
    result = {
        "clicks": len(clicks),
        "predictions": oracle.predictions,
        "oracle_recall_at_20": oracle.recall,
        "oracle_mrr_at_20": oracle.mrr,
    }
    print(json.dumps(result, indent=1))


def _check_free(folder: Path) -> None:
    if (folder / INFO).exists():
        raise FitError(
            f"{folder} already has a checkpoint: go on with --resume, or choose another --out"
        )
