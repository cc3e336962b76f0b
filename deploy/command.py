"""What the commands of `deploy` have in common."""

from pydantic_settings import SettingsConfigDict

from train.command import TrainError


class DeployError(TrainError):
    """Why a broker, an image or the demo cannot go on, in one sentence."""


def options(command: str, prefix: str) -> SettingsConfigDict:
    """How a command's settings are read: from flags, and from the environment under `prefix`."""
    return SettingsConfigDict(
        env_prefix=prefix,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        cli_kebab_case=True,
        cli_prog_name=f"python -m {command}",
        use_attribute_docstrings=True,
    )
