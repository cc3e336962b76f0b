"""``python -m train look``: what a click log holds and what seems wrong with it, on one screen."""

from pathlib import Path

from pydantic_settings import CliPositionalArg

from train.data.health import describe
from train.fit.training_log import Reading, look_at


class LookSettings(Reading):
    """Read a click log as fit does, and print its figures and what seems to be wrong with it."""

    clicks: CliPositionalArg[str | Path]
    """Click log, as for fit."""


def run_look(settings: LookSettings) -> None:
    """Print the screen to stdout; bad records go to a file, as for fit. Raises TrainError for a log
    that ``fit`` could not read either."""
    _, health = look_at(settings)
    print(describe(health, str(settings.clicks)))
