"""``python -m train fit | ensemble | evaluate | report | search | collect | shop``."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSubCommand,
    SettingsConfigDict,
    SettingsError,
    get_subcommand,
)

from train.data.clicks import ClickLogError
from train.data.collect import CollectSettings, run_collect
from train.data.context import ContextError
from train.ensemble import EnsembleSettings, run_ensemble
from train.fit.command import run_evaluate, run_fit, run_shop
from train.fit.resume import FitError
from train.fit.settings import EvaluateSettings, FitSettings, ShopSettings
from train.folders import FolderError
from train.measure.results import EvaluationError
from train.network.checkpoint import CheckpointError
from train.problems import problems
from train.report import ReportSettings, run_report
from train.search import SearchError, SearchSettings, run_search

COMMANDS: dict[type[BaseModel], Callable[[Any], None]] = {
    FitSettings: run_fit,
    EnsembleSettings: run_ensemble,
    EvaluateSettings: run_evaluate,
    ReportSettings: run_report,
    SearchSettings: run_search,
    CollectSettings: run_collect,
    ShopSettings: run_shop,
}
ERRORS = (
    CheckpointError,
    ClickLogError,
    ContextError,
    EvaluationError,
    FitError,
    FolderError,
    SearchError,
    SettingsError,
)


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
    ensemble: CliSubCommand[EnsembleSettings]
    evaluate: CliSubCommand[EvaluateSettings]
    report: CliSubCommand[ReportSettings]
    search: CliSubCommand[SearchSettings]
    collect: CliSubCommand[CollectSettings]
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
        assert isinstance(command, BaseModel), "a word that is no command is a SettingsError"
        COMMANDS[type(command)](command)
    except KeyboardInterrupt:
        print(
            "interrupted; fit goes on with --resume, collect and search run again", file=sys.stderr
        )
        return 130
    except ValidationError as error:
        print(*problems(error, command=True), sep="\n", file=sys.stderr)
        return 2
    except ERRORS as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
