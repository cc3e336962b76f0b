"""``python -m train COMMAND``, one of the fields of `Train`."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_settings import BaseSettings, CliSubCommand, SettingsConfigDict, get_subcommand

from train.blend.command import BlendSettings, run_blend
from train.command import run_command
from train.data.collect import CollectSettings, run_collect
from train.data.synthetic_command import SyntheticSettings, run_synthetic
from train.ensemble import EnsembleSettings, run_ensemble
from train.evaluate import EvaluateSettings, run_evaluate
from train.fit.command import run_fit
from train.fit.settings import FitSettings
from train.live.command import PrequentialSettings, run_prequential
from train.look import LookSettings, run_look
from train.report.page import ReportSettings, run_report
from train.search.command import run_search
from train.search.settings import SearchSettings

COMMANDS: dict[type[BaseModel], Callable[[Any], None]] = {
    LookSettings: run_look,
    FitSettings: run_fit,
    EnsembleSettings: run_ensemble,
    BlendSettings: run_blend,
    EvaluateSettings: run_evaluate,
    PrequentialSettings: run_prequential,
    ReportSettings: run_report,
    SearchSettings: run_search,
    CollectSettings: run_collect,
    SyntheticSettings: run_synthetic,
}


class Train(BaseSettings):
    """Session models: a click log in, a checkpoint and figures out."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_prog_name="python -m train",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        use_attribute_docstrings=True,
    )
    look: CliSubCommand[LookSettings]
    fit: CliSubCommand[FitSettings]
    ensemble: CliSubCommand[EnsembleSettings]
    blend: CliSubCommand[BlendSettings]
    evaluate: CliSubCommand[EvaluateSettings]
    prequential: CliSubCommand[PrequentialSettings]
    report: CliSubCommand[ReportSettings]
    search: CliSubCommand[SearchSettings]
    collect: CliSubCommand[CollectSettings]
    synthetic: CliSubCommand[SyntheticSettings]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_command(
        Train,
        _run,
        arguments,
        interrupted="interrupted: continue fit with --resume, collect and search by running the "
        "same command again",
    )


def _run(train: Train) -> None:
    command = get_subcommand(train, cli_exit_on_error=False)
    assert isinstance(command, BaseModel)
    COMMANDS[type(command)](command)


if __name__ == "__main__":
    sys.exit(main())
