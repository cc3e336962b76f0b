"""Security is a setting: what every Kafka client we make is told under each protocol."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from stream.settings import KafkaSettings
from stream.transport.clients import aiokafka_options, confluent_options

# A throw-away pair, signed by itself, good for a hundred years.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBiTCCAS+gAwIBAgIUZ/wJfN3r4XIlHUOdto7kGyN1RnswCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwObmV4dGNsaWNrLXRlc3QwIBcNMjYxMTI0MTA0NzE1WhgPMjEy
NjEwMzExMDQ3MTVaMBkxFzAVBgNVBAMMDm5leHRjbGljay10ZXN0MFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAErP4LmkQJlxymdPl9Eze5dGP0MxJWryafXSc7EEus
HIclUYzSPnRv5RYhvf9WYg/nQq/CcBG3eyCi21WamJIBCaNTMFEwHQYDVR0OBBYE
FGFvJkncfk53iKdA+KKQgkb3yZ7UMB8GA1UdIwQYMBaAFGFvJkncfk53iKdA+KKQ
gkb3yZ7UMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgDdbvjRm9
mpHxQ7sAfNfhCer8ZAaL4iEH2znPe61w2HoCIQDrngTc7dA+J3Jh+r39E3Ord/mg
LKeDRWyqNHeNT2P/Jg==
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg3hBftXUP23t+D5on
jfeM7qUztMzvgrAPN22mibh2dNOhRANCAASs/guaRAmXHKZ0+X0TN7l0Y/QzElav
Jp9dJzsQS6wchyVRjNI+dG/lFiG9/1ZiD+dCr8JwEbd7IKLbVZqYkgEJ
-----END PRIVATE KEY-----
"""
PROTOCOLS = ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Make = Callable[[str], KafkaSettings]


@pytest.fixture
def settings_of(tmp_path: Path) -> Make:
    """Settings of a protocol with everything given, so that what does not belong must be left."""
    (tmp_path / "certificate.pem").write_text(CERTIFICATE)
    (tmp_path / "key.pem").write_text(KEY)

    def make(protocol: str) -> KafkaSettings:
        return KafkaSettings.model_validate(
            {
                "bootstrap_servers": "kafka-1:9092,kafka-2:9093",
                "security_protocol": protocol,
                "ssl_cafile": tmp_path / "certificate.pem",
                "ssl_certfile": tmp_path / "certificate.pem",
                "ssl_keyfile": tmp_path / "key.pem",
                "sasl_mechanism": "SCRAM-SHA-256",
                "sasl_username": "user",
                "sasl_password": "hunter2",
            }
        )

    return make


def security(options: dict[str, Any]) -> dict[str, Any]:
    """What an aiokafka client does about security: protocol, user, and whether it has a context."""
    context = options.get("ssl_context")
    if context is not None:
        assert isinstance(context, ssl.SSLContext)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert [ca["subject"] for ca in context.get_ca_certs()] == [
            ((("commonName", "nextclick-test"),),)
        ]
    user = tuple(
        options.get(f"sasl_{part}") for part in ("mechanism", "plain_username", "plain_password")
    )
    return {
        "protocol": options["security_protocol"],
        "user": user if any(user) else None,
        "tls": context is not None,
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_aiokafka_does_what_every_protocol_says(settings_of: Make, protocol: str) -> None:
    assert security(aiokafka_options(settings_of(protocol))) == {
        "protocol": protocol,
        "user": ("SCRAM-SHA-256", "user", "hunter2") if "SASL" in protocol else None,
        "tls": protocol.endswith("SSL"),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_librdkafka_takes_the_options_of_every_protocol(settings_of: Make, protocol: str) -> None:
    options = confluent_options(settings_of(protocol))
    assert options["security.protocol"] == protocol
    assert ("ssl.ca.location" in options) == protocol.endswith("SSL")
    assert (options.get("sasl.password") == "hunter2") == protocol.startswith("SASL")
    AdminClient(options | {"bootstrap.servers": ""})  # refuses an option that it does not know


def test_every_client_knows_every_broker(settings_of: Make) -> None:
    settings = settings_of("PLAINTEXT")
    assert aiokafka_options(settings)["bootstrap_servers"] == ["kafka-1:9092", "kafka-2:9093"]
    assert confluent_options(settings)["bootstrap.servers"] == "kafka-1:9092,kafka-2:9093"


def test_without_files_tls_trusts_the_systems_certificates() -> None:
    settings = KafkaSettings(security_protocol="SSL")
    context = aiokafka_options(settings)["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not any(name.startswith("ssl.") for name in confluent_options(settings))


def test_a_client_certificate_that_is_none_is_refused(settings_of: Make, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(ssl.SSLError):
        aiokafka_options(settings_of("SSL"))
