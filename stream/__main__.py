"""``python -m stream worker | topics create | topics check | reset | watch``."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsError

from stream.model.bundle import BundleError
from stream.position import PositionError
from stream.reset import ResetError
from stream.settings import (
    KafkaSettings,
    ResetSettings,
    TopicsSettings,
    WatchSettings,
    WorkerSettings,
)
from stream.transport.patches import PatchError
from stream.transport.topics import TopicError

T = TypeVar("T", bound=BaseSettings)
EXIT_DEPLOYMENT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for command, run in COMMANDS.items():
        if words[: len(command.split())] == command.split():
            return _guarded(run, words[len(command.split()) :])
    known = ", ".join(COMMANDS)
    if words in (["--help"], ["-h"]):
        print(f"usage: python -m stream COMMAND [--help]\ncommands: {known}")
        return 0
    found = f"unknown command {' '.join(words)!r}" if words else "no command"
    print(f"{found}, expected one of: {known}", file=sys.stderr)
    return EXIT_DEPLOYMENT


def _guarded(run: Callable[[list[str]], int], words: list[str]) -> int:
    """Turn what is wrong with a deployment into one sentence and exit code 2."""
    try:
        return run(words)
    except (
        BundleError,
        PatchError,
        PositionError,
        TopicError,
        ResetError,
        SettingsError,
    ) as error:
        print(error, file=sys.stderr)
    return EXIT_DEPLOYMENT


def _settings(command: str, kind: type[T], words: list[str]) -> T:
    """Return the settings of a command. Raises SettingsError, a line for each wrong setting."""
    program = f"python -m stream {command}"
    try:
        return kind(
            _cli_parse_args=words,
            _cli_prog_name=program,
            _cli_exit_on_error=False,  # the parser's own error comes behind a page of usage
            _cli_show_env_vars=True,
        )
    except ValidationError as error:
        problems = [_sentence(kind, problem) for problem in error.errors()]
        raise SettingsError("\n".join(problems)) from error
    except SettingsError as error:
        detail = str(error).removeprefix("error parsing CLI: ")
        raise SettingsError(f"{detail}; `{program} --help` lists the flags") from error


def _sentence(kind: type[BaseSettings], problem: ErrorDetails) -> str:
    """Say what is wrong with a setting: flag and environment name, found, expected, meaning."""
    if not problem["loc"]:  # settings that do not go together
        return problem["msg"].removeprefix("Value error, ")
    name = str(problem["loc"][0])
    field = kind.model_fields[name]
    where = f"--{name.replace('_', '-')} (or {kind.model_config['env_prefix']}{name.upper()})"
    if problem["type"] == "missing":  # whose input is all other settings, a password among them
        return f"{where} is missing: {field.description}"
    found = repr(problem["input"]) if field.repr else "wrong"
    expected = problem["msg"].partition(", unable to")[0]
    for prefix in ("Input should be ", "String should "):
        expected = expected.removeprefix(prefix)
    return f"{where} is {found}, expected: {expected}; it means: {field.description}"


def _worker(words: list[str]) -> int:
    # Imported here, so that the other commands do not load Faust and ONNX Runtime.
    from stream.service import AddressError, run_worker

    try:
        return run_worker(_settings("worker", WorkerSettings, words))
    except AddressError as error:
        print(error, file=sys.stderr)
        return EXIT_DEPLOYMENT


def _topics_create(words: list[str]) -> int:
    from stream.transport.topics import check_topics, create_topics

    settings = _settings("topics create", TopicsSettings, words)
    created = create_topics(settings)
    facts = check_topics(settings)
    print(f"created: {', '.join(created) or 'nothing, all topics exist'}")
    if facts.click_partitions != settings.partitions:
        print(
            f"{settings.clicks_topic} has {facts.click_partitions} partitions, not the "
            f"{settings.partitions} asked for: existing topics are left alone"
        )
    return 0


def _topics_check(words: list[str]) -> int:
    from stream.transport.topics import check_topics

    facts = check_topics(_settings("topics check", KafkaSettings, words))
    print(f"topics are right: {facts.click_partitions} partitions of clicks")
    return 0


def _reset(words: list[str]) -> int:
    from stream.reset import reset_positions

    for partition, offset in reset_positions(_settings("reset", ResetSettings, words)).items():
        print(f"partition {partition}: goes on at offset {offset}")
    return 0


def _watch(words: list[str]) -> int:
    from stream.watch.command import watch

    try:
        watch(_settings("watch", WatchSettings, words))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "worker": _worker,
    "topics create": _topics_create,
    "topics check": _topics_check,
    "reset": _reset,
    "watch": _watch,
}


if __name__ == "__main__":
    sys.exit(main())
