"""What is wrong with a command's settings, in words of its command line."""

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def problems(error: ValidationError, *, command: bool = False) -> list[str]:
    """One sentence a problem: the flag, what is expected, what was found.

    `command` tells that the settings are those of a subcommand, whose name is no flag's part.
    """
    return [_problem(found, found["loc"][command:]) for found in error.errors()]


def _problem(found: ErrorDetails, location: tuple[int | str, ...]) -> str:
    message = found["msg"].removeprefix("Value error, ")
    if not location:  # settings that do not go together: they have no flag, and all are the input
        return message
    flag = ".".join(str(part) for part in location).replace("_", "-")
    if found["type"] == "missing":  # all that was given is the input
        return f"--{flag} is missing"
    return f"--{flag}: {message} (found {found['input']!r})"
