"""A benchmark's settings."""

import pytest
from pydantic import PositiveInt
from pydantic_settings import BaseSettings, CliSubCommand, SettingsConfigDict

from bench.settings import parse


class Own(BaseSettings):
    model_config = SettingsConfigDict(cli_kebab_case=True)
    n_items: PositiveInt
    seeds: list[PositiveInt] = [1]


class Whole(BaseSettings):
    model_config = SettingsConfigDict(cli_kebab_case=True)
    own: CliSubCommand[Own]


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        ([], ["--n-items is missing"]),
        (["--n-items", "0"], ["--n-items: Input should be greater than 0 (found '0')"]),
        (
            ["--n-items", "few", "--seeds", "2,0"],
            [
                "--n-items: Input should be a valid integer, unable to parse string as an integer "
                "(found 'few')",
                "--seeds.1: Input should be greater than 0 (found 0)",
            ],
        ),
        (["--n-items", "2", "--seeds", "[1"], None),
    ],
)
@pytest.mark.parametrize(("kind", "first"), [(Own, []), (Whole, ["own"])])
def test_a_wrong_setting_is_one_sentence(
    kind: type[BaseSettings],
    first: list[str],
    words: list[str],
    sentences: list[str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", *first, *words])
    with pytest.raises(SystemExit) as stopped:
        parse(kind)
    said = str(stopped.value).splitlines()
    if sentences is None:
        assert "seeds" in said[0]
    else:
        assert said == sentences
