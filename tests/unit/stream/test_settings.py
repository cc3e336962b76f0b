"""What settings take, where from, and what they refuse."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from stream import settings as module
from stream.settings import KafkaSettings, ResetSettings, TopicsSettings, WorkerSettings

ALL = [s for s in vars(module).values() if isinstance(s, type) and issubclass(s, KafkaSettings)]


@pytest.mark.parametrize("kind", ALL)
def test_every_setting_says_what_it_is(kind: type[BaseSettings]) -> None:
    assert kind.__doc__
    missing = [name for name, field in kind.model_fields.items() if not field.description]
    assert missing == []


@pytest.mark.parametrize("kind", ALL)
def test_settings_are_frozen_and_take_no_unknown_name(kind: type[BaseSettings]) -> None:
    assert kind.model_config["frozen"]
    assert kind.model_config["extra"] == "forbid"


def test_environment_and_flags_are_read_and_the_flag_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTCLICK_BUNDLE", "from-environment")
    monkeypatch.setenv("NEXTCLICK_BATCH_CLICKS", "7")
    settings = _cli(WorkerSettings, "--batch-clicks=8")
    assert settings.bundle == Path("from-environment")
    assert settings.batch_clicks == 8


def _cli(kind: Any, *words: str) -> Any:
    return kind(_cli_parse_args=list(words))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("batch_clicks", [1, 4096], [0, 4097, 1.5]),
        ("batch_window_s", [0, 1], [-0.001, 1.1, "nan"]),
        ("bad_click_run_limit", [1], [0]),
        ("bad_click_share_limit", [0.001, 1], [0, 1.001]),
        ("session_timeout_s", [6], [5.9]),
        ("web_port", [1, 65535], [0, 65536]),
        ("app_id", ["a.b_c-D9"], ["", "a b", "a/b", "a" * 201]),
        ("clicks_topic", ["clicks"], ["", "clicks!", "c" * 250]),
        (
            "bootstrap_servers",
            ["a:1,b:2", "[::1]:9092", "a"],
            ["", "a:1,", ",", "PLAINTEXT://a:1", "a:1 b:2"],
        ),
        ("security_protocol", ["SSL"], ["TLS", "ssl"]),
        ("sasl_mechanism", ["PLAIN"], ["GSSAPI"]),
        ("log_level", ["debug"], ["DEBUG", "loud"]),
        ("expected_bundle_id", ["0123456789abcdef", None], ["", "0" * 15, "0" * 17, "x" * 16]),
    ],
)
def test_bounds_of_a_setting(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        settings = WorkerSettings.model_validate({"bundle": "b", name: value})
        assert getattr(settings, name) == value
    for value in bad:
        with pytest.raises(ValidationError) as refusal:
            WorkerSettings.model_validate({"bundle": "b", name: value})
        assert [error["loc"] for error in refusal.value.errors()] == [(name,)]


@pytest.mark.parametrize("to", ["earliest", "latest", "0", "1764000000"])
def test_a_reset_goes_to_an_end_or_an_offset(to: str) -> None:
    assert ResetSettings.model_validate({"to": to}).to == to


@pytest.mark.parametrize("to", ["", "now", "-1", "1.5", "earliest "])
def test_a_reset_goes_nowhere_else(to: str) -> None:
    with pytest.raises(ValidationError):
        ResetSettings.model_validate({"to": to})


def test_a_click_of_the_largest_size_and_its_dead_letter_can_be_configured() -> None:
    for size in (0, 64 * 1024 * 1024 + 1):
        with pytest.raises(ValidationError):
            TopicsSettings(max_message_bytes=size)


def test_the_password_is_not_shown() -> None:
    settings = KafkaSettings(sasl_password="hunter2")
    assert "hunter2" not in repr(settings) + str(settings)


def test_the_changelog_is_named_after_the_app() -> None:
    # Faust's own rule: app, table, "changelog"; another name would leave the table without one.
    assert KafkaSettings(app_id="shop").changelog_topic == "shop-sessions-changelog"


@pytest.mark.parametrize("missing", ["sasl_username", "sasl_password"])
def test_sasl_needs_a_user_and_a_password_and_names_neither_ones_value(missing: str) -> None:
    given = {"sasl_username": "someone", "sasl_password": "secret", missing: None}
    with pytest.raises(ValidationError) as refused:
        KafkaSettings(security_protocol="SASL_SSL", **given)  # type: ignore[arg-type]
    (problem,) = refused.value.errors()
    assert problem["msg"].endswith("needs sasl_username and sasl_password; at least one is not set")


def test_a_certificate_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="does not point to a file"):
        KafkaSettings(security_protocol="SSL", ssl_cafile=tmp_path / "absent.pem")


def test_servers_are_one_by_one_without_spaces() -> None:
    assert KafkaSettings(bootstrap_servers="a:1, b:2").servers == ["a:1", "b:2"]


@pytest.mark.parametrize(
    "names",
    [
        {"recommendations_topic": "clicks"},
        {"dead_letter_topic": "recommendations"},
        {"clicks_topic": "nextclick-sessions-changelog"},
    ],
)
def test_no_topic_has_two_roles(names: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"are both \S+; expected different topics"):
        KafkaSettings(**names)  # type: ignore[arg-type]
