"""What the commands of `deploy` have in common."""

from pydantic_settings import SettingsConfigDict

from train.command import TrainError


class DeployError(TrainError):
    """Why a broker, an image or the demo cannot go on, in one sentence."""


def options(command: str) -> SettingsConfigDict:
    """How the settings of ``python -m command`` are read: from flags, and from the environment. The
    variables of deploy.demo begin with NEXTCLICK_DEMO_, and so on."""
    return SettingsConfigDict(
        env_prefix=f"NEXTCLICK_{command.rpartition('.')[2].upper()}_",
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        cli_kebab_case=True,
        cli_prog_name=f"python -m {command}",
        use_attribute_docstrings=True,
    )
