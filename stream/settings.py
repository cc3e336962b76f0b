"""What an operator can set: environment (``NEXTCLICK_*``) and flags, read once at the start.

What training and serving must agree on (idle timeout, lateness, event types, K, the items) is not
a setting: the bundle's manifest has it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    FilePath,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from stream.contract.records import Target


def _spelled(pattern: str, expected: str) -> AfterValidator:
    """Text of this pattern, which an operator is told in words: pydantic would show the pattern."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {expected}")
        return text

    return AfterValidator(check)


_NAME = "ASCII letters, digits, dots, hyphens and underscores"
Topic = Annotated[str, _spelled(r"[a-zA-Z0-9._-]{1,249}", f"1 to 249 {_NAME}")]
_AppId = Annotated[str, _spelled(r"[a-zA-Z0-9._-]{1,200}", f"1 to 200 {_NAME}")]
_BundleId = Annotated[str, _spelled(r"[0-9a-f]{16}", "16 hex digits in lower case")]
_Servers = Annotated[
    str,
    # One of the worker's two clients reads a scheme as the host's name.
    _spelled(
        r"\s*[^\s/,]+\s*(,\s*[^\s/,]+\s*)*",
        "host:port pairs separated by commas, without a scheme; instead of SSL://, set "
        "security_protocol",
    ),
]
_Place = Annotated[str, _spelled("earliest|latest|[0-9]+", "earliest, latest or an offset")]


@dataclass(frozen=True, slots=True)
class Wiring:
    """The topics of one processor. ``outputs``: by the name that the processor calls them.

    The changelog has as many partitions as the input. ``scattered``: outputs whose messages name
    their partitions; what comes of an input partition may be in any of them. reset: the command
    that moves its positions.
    """

    group_id: str
    input: str
    changelog: str
    outputs: Mapping[str, str]
    scattered: frozenset[str] = frozenset()
    reset: str = "python -m stream reset"

    @property
    def choose(self) -> str:
        """What an operator does whose positions are lost."""
        return f"choose where to continue with `{self.reset} --to earliest|latest|OFFSET`"


class KafkaSettings(BaseSettings):
    """How to reach Kafka, and which topics are ours."""

    model_config = SettingsConfigDict(
        env_prefix="NEXTCLICK_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        use_attribute_docstrings=True,
    )

    bootstrap_servers: _Servers = "127.0.0.1:9092"
    """Kafka brokers, host:port, separated by commas."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Kafka's security.protocol."""
    ssl_cafile: FilePath | None = None
    """CA certificates (PEM) that signed the brokers'; unset: the system's."""
    ssl_certfile: FilePath | None = None
    """Client certificate (PEM), for mutual TLS."""
    ssl_keyfile: FilePath | None = None
    """Key (PEM) of the client certificate."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """SASL mechanism, where the security protocol is a SASL one."""
    sasl_username: str | None = None
    """SASL user."""
    sasl_password: str | None = Field(default=None, repr=False)
    """SASL password."""

    app_id: _AppId = "nextclick"
    """Consumer group, and prefix of the transactional ids and of the changelog topic."""
    clicks_topic: Topic = "clicks"
    """Topic the clicks are read from."""
    recommendations_topic: Topic = "recommendations"
    """Topic the recommendations are written to."""
    dead_letter_topic: Topic = "clicks-dead-letter"
    """Topic the bad clicks are written to."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        roles: dict[str, str] = {}
        for role, name in (
            ("clicks_topic", self.clicks_topic),
            ("recommendations_topic", self.recommendations_topic),
            ("dead_letter_topic", self.dead_letter_topic),
            ("the changelog of app_id", self.changelog_topic),
        ):
            if name in roles:
                raise ValueError(
                    f"{roles[name]} and {role} are both {name}; expected different topics"
                )
            roles[name] = role
        is_sasl = self.security_protocol.startswith("SASL_")
        if is_sasl and not (self.sasl_username and self.sasl_password):
            raise ValueError(
                f"security_protocol is {self.security_protocol}, which needs sasl_username and "
                "sasl_password; at least one is not set"
            )
        return self

    @property
    def servers(self) -> list[str]:
        """The brokers, one by one."""
        return [server.strip() for server in self.bootstrap_servers.split(",")]

    @property
    def changelog_topic(self) -> str:
        """The compacted topic behind the session table (Faust's name for it)."""
        return f"{self.app_id}-sessions-changelog"

    @property
    def item_events_topic(self) -> str:
        """What clicks teach of items, for the item processor."""
        return f"{self.app_id}-item-events"

    @property
    def item_view_topic(self) -> str:
        """The compacted topic of the items' counts, which every worker reads."""
        return f"{self.app_id}-item-view"

    @property
    def wiring(self) -> Wiring:
        """The topics as the transport takes them."""
        outputs: dict[str, str] = {
            Target.RECOMMENDATIONS: self.recommendations_topic,
            Target.DEAD_LETTERS: self.dead_letter_topic,
        }
        return Wiring(self.app_id, self.clicks_topic, self.changelog_topic, outputs)

    @property
    def live_wiring(self) -> Wiring:
        """The same of a worker whose clicks are to be learnt from."""
        wiring = self.wiring
        outputs = {**wiring.outputs, Target.ITEM_EVENTS: self.item_events_topic}
        return replace(wiring, outputs=outputs, scattered=frozenset({Target.ITEM_EVENTS}))

    @property
    def items_wiring(self) -> Wiring:
        """The topics of the item processor."""
        outputs: dict[str, str] = {
            Target.DEAD_LETTERS: self.dead_letter_topic,
            Target.ITEM_VIEW: self.item_view_topic,
        }
        changelog = f"{self.app_id}-items-changelog"
        wiring = Wiring(f"{self.app_id}-items", self.item_events_topic, changelog, outputs)
        return replace(wiring, reset=f"{wiring.reset} --processor items")


class ServiceSettings(KafkaSettings):
    """What every process that serves is told."""

    bundle: Path
    """Folder of the bundle to serve."""
    expected_bundle_id: _BundleId | None = None
    """Serve only this bundle; unset: whichever the folder holds."""
    batch_clicks: PositiveInt = Field(default=256, le=4096)
    """Most clicks in one micro-batch."""
    batch_window_s: NonNegativeFloat = Field(default=0.010, le=1.0)
    """How long a broker gathers clicks for a micro-batch; batches are at least half of it apart."""
    bad_click_run_limit: PositiveInt = 1000
    """Pause a partition at this many bad clicks in a row."""
    bad_click_share_limit: float = Field(default=0.5, gt=0.0, le=1.0)
    """Pause a partition when more than this share of its last 2,000 clicks is bad."""
    session_timeout_s: PositiveFloat = Field(default=10.0, ge=6.0, le=1800.0)
    """A worker silent for this long loses its partitions (the group's session timeout)."""
    web_host: str = "127.0.0.1"
    """Address of the worker's HTTP endpoints; the position records name it to others."""
    web_port: int = Field(default=6066, ge=1, le=65535)
    """Port of the worker's HTTP endpoints; the position records name it, too."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log events that are written."""


class WorkerSettings(ServiceSettings):
    """Read clicks, keep sessions, publish recommendations."""

    inference_threads: PositiveInt = 1
    """Threads of one ONNX call."""
    seen_items: Literal["allow", "exclude", "exclude-last"] | None = None
    """Whether a session's own items are in its lists; unset: as it was better in training. Only of
    bundles that learn from the stream."""


class CountSettings(ServiceSettings):
    """Count which items follow which, for the lists of all workers."""

    batch_clicks: PositiveInt = Field(default=1024, le=4096)
    """Most records of a micro-batch; each has what a batch of clicks teaches."""
    batch_window_s: NonNegativeFloat = Field(default=0.5, le=1.0)
    """How long a broker gathers records for a batch; batches are at least half of it apart."""
    web_port: int = Field(default=6067, ge=1, le=65535)
    """Port of the process's HTTP endpoints; the position records name it, too."""


class TopicsSettings(KafkaSettings):
    """Create the topics, or report what is wrong with existing ones."""

    partitions: PositiveInt = 4
    """Partitions of each topic (the changelog's must equal the clicks topic's)."""
    replication_factor: PositiveInt = 1
    """Replicas of each partition; 3 in production."""
    max_message_bytes: PositiveInt = Field(default=1_048_588, ge=1024, le=64 * 1024 * 1024)
    """Largest click; the dead-letter topic gets 64 KiB more."""


class ProcessorSettings(KafkaSettings):
    """Which of the two processors is meant."""

    processor: Literal["clicks", "items"] = "clicks"
    """clicks: the workers'; items: what `count` runs."""

    @property
    def chosen(self) -> Wiring:
        """The topics of that one."""
        return self.items_wiring if self.processor == "items" else self.wiring


class ResetSettings(ProcessorSettings):
    """Move the position from which stopped workers continue when they start again.

    A partition that goes back drops its sessions (or items) and its watermark, and answers (or
    counts) as if the log began there. What cannot be read of the changelog is given up.
    """

    to: _Place
    """earliest, latest or an offset."""
    partition: NonNegativeInt | None = None
    """The partition to move; unset: all of them."""


class ResumeSettings(ProcessorSettings):
    """Resume partitions that a worker has paused."""

    partition: NonNegativeInt | None = None
    """The partition to resume; unset: all that are paused."""
    pass_over: bool = False
    """Skip the record it is paused at, and send it to the dead-letter topic; unset: try again."""


class WatchSettings(KafkaSettings):
    """Print what goes in and out of the topics, live, until interrupted."""

    session: str | None = None
    """Follow this session; unset: show a busy one, a different one every few seconds."""
    from_beginning: bool = False
    """Also count what the topics already hold; unset: only what comes from now on."""
    idle_timeout_s: PositiveInt | None = None
    """The bundle's idle timeout: a click after a longer pause does not judge the list before it."""
