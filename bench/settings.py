"""A benchmark's settings."""

import sys
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsError

from train.problems import problems

T = TypeVar("T", bound=BaseSettings)


def parse(kind: type[T], *, commands: bool = False) -> T:
    """From the command line. Exits with code 1 and one sentence a wrong setting.

    `commands` tells that the first word is a subcommand.
    """
    try:
        return CliApp.run(kind)
    except ValidationError as error:
        sys.exit("\n".join(problems(error, command=commands)))
    except SettingsError as error:
        sys.exit(str(error))
