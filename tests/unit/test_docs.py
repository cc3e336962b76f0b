"""Pages are code: what they say of commands, flags, variables, metrics and targets is so."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from docs.generate import COMMANDS, FOLDER, PAGES, PARTS
from export.__main__ import main as export
from stream.__main__ import COMMANDS as STREAM_COMMANDS
from stream.__main__ import main as stream
from train.__main__ import main as train

ROOT = FOLDER.parent
MAINS: dict[str, Callable[[], int]] = {"stream": stream, "train": train, "export": export}
# Read by the tests and the demo, and no setting of a command.
OTHER_VARIABLES = {"NEXTCLICK_DATA", "NEXTCLICK_REQUIRE_DOCKER"}
HISTOGRAM_PARTS = re.compile(r"_(bucket|sum|count)$")


def written_pages() -> list[Path]:
    """What people wrote: the front page and everything below docs/ that is not generated."""
    pages = [*ROOT.glob("*.md"), *FOLDER.rglob("*.md")]
    return sorted(page for page in pages if page.name not in PAGES)


def named(pattern: str) -> Iterator[tuple[str, str]]:
    """Every match of a pattern in a written page, with the page's name."""
    for page in written_pages():
        for match in re.findall(pattern, page.read_text()):
            yield str(page.relative_to(ROOT)), match


@pytest.mark.parametrize("name", PAGES | PARTS)
def test_a_generated_page_is_what_the_source_says(name: str) -> None:
    assert (FOLDER / name).read_text() == (PAGES | PARTS)[name](), "run `python -m docs.generate`"


@pytest.fixture
def flags_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], set[str]]]:
    """The flags that ``COMMAND --help`` lists."""

    def flags(command: str) -> set[str]:
        module, *words = command.removeprefix("python -m ").split()
        monkeypatch.setattr("sys.argv", [module, *words, "--help"])
        with pytest.raises(SystemExit) as exit_:
            MAINS[module]()
        assert exit_.value.code == 0
        return set(re.findall(r"(?m)^\s+(--[a-z.-]+)", capsys.readouterr().out))

    yield flags
    structlog.reset_defaults()  # which training's main has configured


def documented(command: str) -> set[str]:
    """The flags that docs/settings.md lists for a command."""
    page = (FOLDER / "settings.md").read_text()
    sections = re.split(r"(?m)^## ", page)
    titles = [f"`{command}`"]
    if "stream" in command:
        titles.append("Kafka, for every `python -m stream` command")
    own = [s for s in sections if s.splitlines()[0] in titles]
    assert len(own) == len(titles)
    return {flag for section in own for flag in re.findall(r"(?m)^\| `(--[a-z.-]+)` ", section)}


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS])
def test_every_documented_flag_is_one_that_help_lists(
    command: str, flags_of: Callable[[str], set[str]]
) -> None:
    listed = flags_of(command)
    assert documented(command) <= listed
    # A group as one JSON value, and the other half of a switch, go without a line of their own.
    left_out = {flag for flag in listed - documented(command) if not flag.startswith("--no-")}
    assert left_out <= {"--columns", "--filters"}


def test_every_command_has_its_settings() -> None:
    of_stream = {f"python -m stream {command}" for command in STREAM_COMMANDS}
    # `topics check` takes what `topics create` takes.
    assert of_stream - {"python -m stream topics check"} <= {command for command, _ in COMMANDS}


def test_commands_in_the_pages_exist() -> None:
    known = {command for command, _ in COMMANDS} | {"python -m stream", "python -m train"}
    known |= {f"python -m stream {command}" for command in STREAM_COMMANDS}
    for page, command in named(r"python -m (?:stream|train|export)(?: [a-z]+(?![\w-]|\.\w))*"):
        assert command in known, f"{page} names `{command}`"


def test_flags_of_commands_in_the_pages_exist(flags_of: Callable[[str], set[str]]) -> None:
    flags = {command: flags_of(command) for command, _ in COMMANDS}
    for page, line in named(r"python -m (?:stream|train|export)[^\n`]*"):
        commands = [c for c in flags if f"{line} ".startswith(f"{c} ")]
        for flag in re.findall(r"(?<= )--[a-z.-]+", line):
            assert all(flag in flags[c] | {"--help"} for c in commands), f"{page}: {line}"


def test_variables_in_the_pages_are_settings() -> None:
    settings = set(re.findall(r"`(NEXTCLICK_[A-Z_]+)`", (FOLDER / "settings.md").read_text()))
    for page, variable in named(r"\bNEXTCLICK_[A-Z_]+[A-Z]\b"):
        assert variable in settings | OTHER_VARIABLES, f"{page} names {variable}"


def test_metrics_in_the_pages_exist() -> None:
    metrics = set(
        re.findall(r"(?m)^\| `((?:recs|items)_\w+)`", (FOLDER / "metrics.md").read_text())
    )
    for page, metric in named(r"(?<![\w:])(?:recs|items)_[a-z0-9_]+(?!:)\b"):
        name = HISTOGRAM_PARTS.sub("", metric)
        assert name in metrics, f"{page} names {metric}"


def test_make_targets_in_the_pages_exist() -> None:
    makefile = ROOT / "Makefile"
    text = makefile.read_text() if makefile.exists() else ""
    targets = set(re.findall(r"(?m)^([a-z][a-z-]*):", text))
    for page, target in named(r"`(?:[A-Z_]+=\S+ )?make ([a-z][a-z-]*)"):
        assert target in targets, f"{page} names `make {target}`"
    for page, target in named(r"(?m)^\s*(?:\$ )?make ([a-z][a-z-]*)\b(?= *(?:[A-Z]+=|#|$))"):
        assert target in targets, f"{page} names `make {target}`"


def test_files_that_the_pages_link_to_exist() -> None:
    for page, target in named(r"\]\((?!https?:|#)([^)#\s]+)"):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"
