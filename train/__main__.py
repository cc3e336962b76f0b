"""``python -m train fit | evaluate | shop``."""

import json
import sys
from collections.abc import Sequence

import structlog
import torch
from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSubCommand,
    SettingsConfigDict,
    SettingsError,
    get_subcommand,
)

from train.baselines import build_baselines
from train.checkpoint import INFO, CheckpointError, load_checkpoint
from train.clicks import (
    ClickLogError,
    read_clicks,
    split_by_time,
    write_clicks,
)
from train.context import ContextError
from train.evaluate import PROTOCOL, Predictor, figures, rank_targets
from train.fit import FitError, check_hyperparameters, fit
from train.oracle import score_oracle
from train.predictor import ModelPredictor
from train.progress import EpochProgress
from train.report import PLOT, plot_training, write_figures
from train.sessions import build_sessions
from train.settings import EvaluateSettings, FitSettings, ShopSettings
from train.shop import generate_shop
from train.training_log import read_training_log

MODEL = "model"
"""The name of the network among the baselines."""

log = structlog.get_logger()


class Train(BaseSettings):
    """Session models: a click log in, a checkpoint and figures out."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_prog_name="python -m train",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        use_attribute_docstrings=True,
    )
    fit: CliSubCommand[FitSettings]
    evaluate: CliSubCommand[EvaluateSettings]
    shop: CliSubCommand[ShopSettings]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; exit code 0, or 2 and one sentence on stderr for what is wrong with it."""
    in_terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer() if in_terminal else structlog.processors.JSONRenderer(),
        ],
        # stdout is for results alone; looked up late, as the progress bar stands in for stderr.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = get_subcommand(CliApp.run(Train, cli_args=words), cli_exit_on_error=False)
        if isinstance(command, FitSettings):
            run_fit(command)
        elif isinstance(command, EvaluateSettings):
            run_evaluate(command)
        elif isinstance(command, ShopSettings):
            run_shop(command)
    except KeyboardInterrupt:
        print("interrupted; a fit goes on with --resume", file=sys.stderr)
        return 130
    except ValidationError as error:
        for problem in error.errors():
            flag = ".".join(str(part) for part in problem["loc"][1:]).replace("_", "-")
            print(f"--{flag}: {problem['msg']} (found {problem['input']!r})", file=sys.stderr)
        return 2
    except (CheckpointError, ClickLogError, ContextError, FitError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run_fit(settings: FitSettings) -> None:
    """Read, train, and write the checkpoint with its figures and plot."""
    resume = load_checkpoint(settings.out) if settings.resume else None
    if resume is None and (settings.out / INFO).exists():
        raise FitError(
            f"{settings.out} holds a checkpoint: --resume goes on with it, another --out keeps it"
        )
    torch.set_num_threads(settings.threads)
    hyperparameters, schedule = settings.hyperparameters(), settings.schedule()
    if resume is not None:
        check_hyperparameters(resume, hyperparameters, schedule)
    warm_start = None if settings.warm_start is None else load_checkpoint(settings.warm_start)
    training_log = read_training_log(
        settings,
        known=None if warm_start is None else warm_start.catalogue,
        fields=None if warm_start is None else warm_start.info.model.context,
    )
    log.info("log_read", **training_log.description().model_dump())
    baselines = build_baselines(training_log.train, len(training_log.catalogue))

    first_epoch = 1 if resume is None else min(len(resume.info.history) + 1, schedule.epochs)
    predictions = training_log.train.n_clicks - len(training_log.train)
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
            validation[name] = figures(ranks)
    write_figures(settings.out, info, validation)
    plot_training(
        settings.out / PLOT,
        info.history,
        info.epoch,
        {name: validation[name] for name in baselines if name in validation},
    )
    for name, values in validation.items():
        log.info("figures", model=name, **{n: round(v, 4) for n, v in values.items() if "20" in n})
    log.info("checkpoint_written", folder=str(settings.out), epoch=info.epoch)


def run_evaluate(settings: EvaluateSettings) -> None:
    """Print the figures of a checkpoint, and of the baselines where their log is named."""
    torch.set_num_threads(settings.threads)
    checkpoint = load_checkpoint(settings.checkpoint)
    n_items, idle_timeout_s = len(checkpoint.catalogue), checkpoint.info.idle_timeout_s
    indexed = build_sessions(
        read_clicks(settings.clicks, settings.columns, idle_timeout_s=idle_timeout_s).clicks,
        checkpoint.catalogue,
        checkpoint.info.model.context,
    )
    if not len(indexed.sessions):
        raise FitError(
            f"{settings.clicks} has no session of two items that {settings.checkpoint} knows: "
            f"{indexed.dropped_clicks} clicks were dropped, and nothing is left to measure"
        )
    predictors: dict[str, Predictor] = {MODEL: ModelPredictor(checkpoint.model)}
    if settings.train_clicks is not None:
        train_clicks = read_clicks(
            settings.train_clicks, settings.columns, idle_timeout_s=idle_timeout_s
        ).clicks
        known = build_sessions(train_clicks, checkpoint.catalogue).sessions
        predictors |= build_baselines(known, n_items)
    result = {
        "protocol": PROTOCOL,
        "sessions": len(indexed.sessions),
        "dropped_clicks": indexed.dropped_clicks,
        "dropped_sessions": indexed.dropped_sessions,
        "figures": {
            name: figures(rank_targets(predictor, indexed.sessions, n_items))
            for name, predictor in predictors.items()
        },
    }
    print(json.dumps(result, indent=1))


def run_shop(settings: ShopSettings) -> None:
    """Write a shop's log, and print what its oracle reaches on the sessions `fit` validates on."""
    config = settings.config()
    clicks = generate_shop(settings.clicks, config)
    write_clicks(clicks, settings.out)
    older, newer = split_by_time(clicks, FitSettings.model_fields["validation_fraction"].default)
    oracle = score_oracle(config, newer, older["item_id"].unique().to_list())
    result = {
        "clicks": len(clicks),
        "predictions": oracle.predictions,
        "oracle_recall_at_20": oracle.recall,
        "oracle_mrr_at_20": oracle.mrr,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    sys.exit(main())
