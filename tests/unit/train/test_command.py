"""One runner for all commands: exit codes, and one sentence per problem."""

import pytest
from pydantic import PositiveInt
from pydantic_settings import BaseSettings, CliSubCommand, SettingsConfigDict

from train.command import Settings, TrainError, run_command


class Own(Settings):
    """A command's settings."""

    n_items: PositiveInt = 1
    share: float = 0.5


class Root(BaseSettings):
    model_config = SettingsConfigDict(cli_kebab_case=True)
    own: CliSubCommand[Own]


def test_the_exit_code_is_what_the_command_returns() -> None:
    assert run_command(Own, lambda own: own.n_items, ["--n-items", "3"]) == 3
    assert run_command(Own, lambda own: None, []) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--n-items", "0"], "--n-items: Input should be greater than 0 (found '0')"),
        (["--share", "nan"], "--share: Input should be a finite number (found 'nan')"),
        (["--shares", "1"], "unrecognized arguments: --shares 1"),
    ],
)
@pytest.mark.parametrize(("kind", "first"), [(Own, []), (Root, ["own"])])
def test_a_wrong_setting_is_exit_code_2(
    kind: type[Own] | type[Root],
    first: list[str],
    words: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(kind, lambda _: None, [*first, *words]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert not said.out


class OwnError(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (TrainError("the log is empty"), 2, "the log is empty\n"),
        (OwnError("the broker is away"), 2, "the broker is away\n"),
        (PermissionError(13, "Permission denied", "out"), 2, "out: Permission denied\n"),
        (KeyboardInterrupt(), 130, "interrupted: run it again\n"),
    ],
)
def test_what_stops_a_command_is_one_sentence(
    raised: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: Own) -> None:
        raise raised

    found = run_command(Own, run, [], errors=(OwnError,), interrupted="interrupted: run it again")
    assert (found, capsys.readouterr().err) == (code, said)


def test_an_error_in_the_code_keeps_its_traceback() -> None:
    def run(_: Own) -> None:
        raise OSError("no file is named")

    with pytest.raises(OSError, match="no file is named"):
        run_command(Own, run, [])
