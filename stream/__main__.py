"""``python -m stream worker | topics create | topics check | reset | watch``."""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsError

from stream.bundle import BundleError
from stream.faust_patches import PatchError
from stream.reset import ResetError
from stream.settings import ResetSettings, TopicsSettings, WorkerSettings
from stream.topics import TopicError

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
    print(f"unknown command {' '.join(words)!r}, expected one of: {known}", file=sys.stderr)
    return EXIT_DEPLOYMENT


def _guarded(run: Callable[[list[str]], int], words: list[str]) -> int:
    """Turn what is wrong with a deployment into one sentence and exit code 2."""
    try:
        return run(words)
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            print(f"{name}: {problem['msg']} (found {problem['input']!r})", file=sys.stderr)
    except (BundleError, PatchError, TopicError, ResetError, SettingsError) as error:
        print(error, file=sys.stderr)
    return EXIT_DEPLOYMENT


def _settings(kind: type[T], words: list[str]) -> T:
    return CliApp.run(kind, cli_args=words)


def _worker(words: list[str]) -> int:
    # Imported here, so that the other commands do not load Faust and ONNX Runtime.
    from stream.service import run_worker

    return run_worker(_settings(WorkerSettings, words))


def _topics_create(words: list[str]) -> int:
    from stream.topics import check_topics, create_topics

    settings = _settings(TopicsSettings, words)
    created = create_topics(settings)
    check_topics(settings)
    print(f"created: {', '.join(created) or 'nothing, all topics exist'}")
    return 0


def _topics_check(words: list[str]) -> int:
    from stream.topics import check_topics

    facts = check_topics(_settings(TopicsSettings, words))
    print(f"topics are right: {facts.click_partitions} partitions of clicks")
    return 0


def _reset(words: list[str]) -> int:
    from stream.reset import reset_positions

    for partition, offset in reset_positions(_settings(ResetSettings, words)).items():
        print(f"partition {partition}: goes on at offset {offset}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "worker": _worker,
    "topics create": _topics_create,
    "topics check": _topics_check,
    "reset": _reset,
}


if __name__ == "__main__":
    sys.exit(main())
