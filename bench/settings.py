"""A benchmark's settings."""

import sys
from typing import TypeVar

from pydantic_settings import BaseSettings

from train import command

T = TypeVar("T", bound=BaseSettings)


def parse(kind: type[T]) -> T:
    """From the command line. Exits with code 1 and one sentence per wrong setting."""
    try:
        return command.parse(kind)
    except command.TrainError as error:
        sys.exit(str(error))
