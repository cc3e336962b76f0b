"""``python -m stream worker | count | topics create | topics check | resume | reset | watch``."""

import os
import signal

# Before all other imports, which take a second: a worker that is stopped while it starts has
# nothing to finish. Faust replaces this once it runs.
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsError

from stream.errors import StreamError
from stream.settings import (
    CountSettings,
    KafkaSettings,
    ResetSettings,
    ResumeSettings,
    TopicsSettings,
    WatchSettings,
    WorkerSettings,
)

T = TypeVar("T", bound=BaseSettings)
EXIT_DEPLOYMENT = 2
_BEGINNINGS = ("Input should be ", "Path does not point to ", "Value error, expected ")
"""Of pydantic's messages, in place of "expected"."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for command, (kind, run) in COMMANDS.items():
        n_words = len(command.split())
        if words[:n_words] == command.split():
            try:
                return run(_settings(command, kind, words[n_words:])) or 0
            except StreamError as error:
                print(error, file=sys.stderr)
                return EXIT_DEPLOYMENT
    known = ", ".join(COMMANDS)
    if words and words[-1] in ("--help", "-h"):
        group = [command for command in COMMANDS if command.split()[: len(words) - 1] == words[:-1]]
        if group:
            print(f"usage: python -m stream COMMAND [--help]\ncommands: {', '.join(group)}")
            return 0
    found = f"unknown command {' '.join(words)!r}" if words else "no command"
    print(f"{found}, expected one of: {known}", file=sys.stderr)
    return EXIT_DEPLOYMENT


def _settings(command: str, kind: type[T], words: list[str]) -> T:
    """Return the settings of a command. Raises StreamError, a line for each wrong setting."""
    program = f"python -m stream {command}"
    try:
        return kind(
            _cli_parse_args=words,
            _cli_prog_name=program,
            _cli_exit_on_error=False,  # the parser's own error follows a page of usage
            _cli_show_env_vars=True,
        )
    except ValidationError as error:
        problems = [_sentence(kind, problem) for problem in error.errors()]
        raise StreamError("\n".join(problems)) from error
    except SettingsError as error:
        detail = str(error).removeprefix("error parsing CLI: ")
        raise StreamError(f"{detail}; `{program} --help` lists the flags") from error


def _sentence(kind: type[BaseSettings], problem: ErrorDetails) -> str:
    """Say what is wrong with a setting: flag and environment name, found, expected, meaning."""
    if not problem["loc"]:  # settings that contradict each other
        return problem["msg"].removeprefix("Value error, ")
    name = str(problem["loc"][0])
    field = kind.model_fields[name]
    where = f"--{name.replace('_', '-')} (or {kind.model_config['env_prefix']}{name.upper()})"
    if problem["type"] == "missing":  # its input is all other settings, a password among them
        return f"{where} is missing: {field.description}"
    found = repr(problem["input"]) if field.repr else "wrong"
    expected = problem["msg"].partition(", unable to")[0]
    for beginning in _BEGINNINGS:
        expected = expected.removeprefix(beginning)
    return f"{where} is {found}, expected {expected}. Description: {field.description}"


# Each command imports what it needs: only the worker loads Faust and ONNX Runtime.


def _worker(settings: WorkerSettings) -> int:
    from stream.service import run_worker

    return run_worker(settings)


def _count(settings: CountSettings) -> int:
    from stream.service import run_counting

    return run_counting(settings)


def _topics_create(settings: TopicsSettings) -> None:
    from stream.transport.topics import check_all_topics, create_topics, n_partitions

    created = create_topics(settings)
    check_all_topics(settings)
    print(f"created: {', '.join(created) or 'nothing, all topics exist'}")
    (found,) = n_partitions(settings, [settings.clicks_topic]).values()
    if found != settings.partitions:
        print(
            f"{settings.clicks_topic} has {found} partitions, not the {settings.partitions} "
            "requested: existing topics are left unchanged"
        )


def _topics_check(settings: KafkaSettings) -> None:
    from stream.transport.topics import check_all_topics, n_partitions

    missing = check_all_topics(settings)
    (found,) = n_partitions(settings, [settings.clicks_topic]).values()
    print(f"topics are set up correctly: {settings.clicks_topic} has {found} partitions")
    if missing:
        print(
            f"none of {', '.join(missing)} exists: a bundle whose manifest has a section `live` "
            "needs them, and `python -m stream topics create` creates them"
        )


def _reset(settings: ResetSettings) -> None:
    from stream.reset import reset_positions

    for line in reset_positions(settings):
        print(line)


def _resume(settings: ResumeSettings) -> None:
    from stream.resume import resume_partitions

    for line in resume_partitions(settings):
        print(line, flush=True)


def _watch(settings: WatchSettings) -> None:
    from functools import partial

    from stream.transport.reader import batch_at
    from stream.watch.command import watch

    try:
        watch(settings, partial(batch_at, settings))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


COMMANDS: dict[str, tuple[type[KafkaSettings], Callable[[Any], int | None]]] = {
    "worker": (WorkerSettings, _worker),
    "count": (CountSettings, _count),
    "topics create": (TopicsSettings, _topics_create),
    "topics check": (KafkaSettings, _topics_check),
    "resume": (ResumeSettings, _resume),
    "reset": (ResetSettings, _reset),
    "watch": (WatchSettings, _watch),
}


if __name__ == "__main__":
    sys.exit(main())
