"""``python -m train fit``: a click log in, a checkpoint with its figures and plot out."""

from pathlib import Path

import structlog
import torch

from train.baselines.named import build_baselines
from train.fit.loop import fit
from train.fit.resume import (
    FitError,
    check_context,
    check_device,
    check_hyperparameters,
    check_reading,
    check_warm_start,
)
from train.fit.settings import FitSettings
from train.fit.training_log import TrainingLog, how_read, read_training_log
from train.folders import locked, make_folder
from train.live.fit import FEWEST_ASKED, LIVE, STATIC, fit_live
from train.live.replay import ASKED, network_for
from train.measure.metrics import figures
from train.measure.predictor import MODEL
from train.measure.ranking import rank_targets
from train.network.checkpoint import INFO, Checkpoint, Live, load_checkpoint, save_info
from train.network.presets import LARGE_LOG, sizes_for
from train.progress import EpochProgress
from train.report.training import PLOT, plot_training, write_figures

SHOWN = ("recall_at_20", "mrr_at_20")

log = structlog.get_logger()


def run_fit(settings: FitSettings) -> None:
    """Read the log, train, and write the checkpoint with its figures and plot."""
    resume = load_checkpoint(settings.out) if settings.resume else None
    if resume is None:
        _check_free(settings.out)
    elif not resume.info.history:
        raise FitError(
            f"{settings.out} is an ensemble, which has no training to resume: start from it with "
            "--warm-start"
        )
    torch.set_num_threads(1)  # steps are small: a second thread gains little
    warm_start = None if settings.warm_start is None else load_checkpoint(settings.warm_start)
    if resume is not None:
        sizes = _sizes(settings, resume.info.training.clicks, warm_start)
        check_hyperparameters(resume, settings.hyperparameters(sizes))
    if warm_start is not None:
        check_warm_start(warm_start, settings.hyperparameters(_sizes(settings, 0, warm_start)))
    elif resume is not None:
        check_context(resume, settings.context, settings.utc_offset_s)
    if resume is not None:
        check_reading(resume, *how_read(settings))
    check_device(settings.device)
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


def _sizes(settings: FitSettings, n_clicks: int, warm_start: Checkpoint | None) -> dict[str, float]:
    """What is not given, for a log of so many clicks; a warm start keeps its weights' width."""
    sizes = sizes_for(n_clicks, settings.optimiser)
    if warm_start is not None:
        sizes["hidden_size"] = warm_start.info.model.hidden_size
    return {name: size for name, size in sizes.items() if name not in settings.model_fields_set}


def _fit(
    settings: FitSettings,
    training_log: TrainingLog,
    resume: Checkpoint | None,
    warm_start: Checkpoint | None,
) -> None:
    n_clicks = training_log.train.n_clicks
    chosen = _sizes(settings, n_clicks, warm_start)
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
    if info.live is None:  # else it comes from a run that was finished
        live = _fit_live(training_log, load_checkpoint(settings.out))
        save_info(settings.out, info.model_copy(update={"live": live}))
    log.info("checkpoint_written", folder=str(settings.out), epoch=info.epoch)


def _fit_live(training_log: TrainingLog, checkpoint: Checkpoint) -> Live | None:
    """How lists learn from the stream, if that is known and lists are better for it."""
    newest = training_log.newest
    n_asked = 0 if newest is None else int(newest[ASKED].sum())
    if newest is None or n_asked < FEWEST_ASKED:
        note = f"expected at least {FEWEST_ASKED} in the validation; lists do not learn from clicks"
        log.info("live_not_fitted", next_clicks=n_asked, note=note)
        return None
    fitted = fit_live(newest, network_for(checkpoint, newest))
    for name, values in fitted.figures.items():
        log.info("prequential_figures", model=name, **values)
    if sum(fitted.figures[LIVE].values()) <= sum(fitted.figures[STATIC].values()):
        log.info("live_not_better", note="lists do not learn from clicks")
        return None
    return Live(
        time_scale_s=fitted.rules.time_scale_ms // 1000,
        popularity_half_life_s=fitted.rules.popularity_half_life_ms // 1000,
        excludes_seen=fitted.rules.excludes_seen,
        bias=fitted.live.bias,
        sharpness=fitted.live.sharpness,
        weights=fitted.live.weights.tolist(),
    )


def _check_free(folder: Path) -> None:
    if (folder / INFO).exists():
        raise FitError(
            f"{folder} already has a checkpoint: continue with --resume, or choose another --out"
        )
