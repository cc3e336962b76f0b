"""How a command runs: its settings from the command line, its problems in one sentence each.

The commands of `train` and `export` run this way, and so do the benchmarks and the demo.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar, get_args

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import CliApp, CliSubCommand, SettingsError

T = TypeVar("T", bound=BaseModel)

_Subcommand: TypeAlias = CliSubCommand[BaseModel]
_MARK = get_args(_Subcommand)[-1]  # by which a field is known as a subcommand


class TrainError(Exception):
    """Why a command cannot go on, in one sentence; its exit code is 2."""


class Settings(BaseModel):
    """Base of every group of settings: immutable, without unknown names, NaN or infinity. The
    docstrings of its fields are their help texts."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def run_command(
    kind: type[T],
    run: Callable[[T], int | None],
    arguments: Sequence[str] | None = None,
    *,
    errors: tuple[type[Exception], ...] = (),
    interrupted: str = "interrupted",
) -> int:
    """Parse `arguments` (those of the process by default) as `kind`, run, and return the exit code.

    That is what `run` returns (None: 0), 130 after Ctrl-C, with `interrupted` on stderr, or 2 with
    a sentence on stderr for each wrong setting, for a TrainError, for one of `errors`, or for a
    file that cannot be read or written. Logs go to stderr: stdout is for results alone.
    """
    expected: tuple[type[Exception], ...] = (TrainError, SettingsError, *errors)
    log_to_stderr()
    try:
        return run(parse(kind, arguments)) or 0
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except expected as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2


def parse(kind: type[T], arguments: Sequence[str] | None = None) -> T:
    """The settings on the command line. Raises TrainError with one line per wrong setting."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return CliApp.run(kind, cli_args=words, cli_exit_on_error=False)
    except ValidationError as error:
        raise TrainError("\n".join(_sentence(kind, found) for found in error.errors())) from error


def load_json(kind: type[T], path: Path, problem: str) -> T:
    """What a file of ours holds. Raises TrainError, with the problem, if it holds anything else."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TrainError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            message = f"{'.'.join(map(str, first['loc']))}: {message}"
            message += "" if first["type"] == "missing" else f" (found {first['input']!r})"
        raise TrainError(f"{path}{problem}: {message}") from error


def log_to_stderr() -> None:
    """Write log lines to stderr: readable in a terminal, as JSON elsewhere."""
    in_terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer() if in_terminal else structlog.processors.JSONRenderer(),
        ],
        # Looked up for every line, since a progress bar replaces sys.stderr while it is shown.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _sentence(kind: type[BaseModel], found: ErrorDetails) -> str:
    """The flag, what is expected, and what was found."""
    location, message = found["loc"], found["msg"].removeprefix("Value error, ")
    field = kind.model_fields.get(str(location[0])) if location else None
    if field is not None and _MARK in field.metadata:
        location = location[1:]  # the command's name is no part of the flag
    if not location:  # settings that contradict each other: no single flag is wrong
        return message
    flag = ".".join(str(part) for part in location).replace("_", "-")
    if found["type"] == "missing":  # its input would be everything that was given
        return f"--{flag} is missing"
    return f"--{flag}: {message} (found {found['input']!r})"
