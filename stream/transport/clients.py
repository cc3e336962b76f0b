"""Settings as the options of every Kafka client we make: address and security."""

import ssl
from typing import Any

from stream.settings import KafkaSettings

CLIENT_ID = "nextclick"
BATCH_BYTES = 1_000_000
"""Largest batch of records the worker produces; the brokers' default takes it."""
QUEUED_KIB = 65_536
"""What a consumer fetches ahead, of all its partitions together."""


def confluent_options(settings: KafkaSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": CLIENT_ID,
        "security.protocol": settings.security_protocol,
        "reconnect.backoff.max.ms": 1_000,  # a broker that is back is noticed within a second
        # A consumer whose partitions had no leader when its broker shut down waits for the next
        # refresh (librdkafka 2.16.1), by default for five minutes. So are partitions noticed that
        # are added to the input, and refused.
        "topic.metadata.refresh.interval.ms": 10_000,
        # Critical alone: without a broker librdkafka prints hundreds of lines before the one
        # sentence in which we say so, and at info it tells of every client that ends.
        "log_level": 2,
    }
    if _has_tls(settings):
        files = {
            "ssl.ca.location": settings.ssl_cafile,
            "ssl.certificate.location": settings.ssl_certfile,
            "ssl.key.location": settings.ssl_keyfile,
        }
        options |= {name: str(path) for name, path in files.items() if path is not None}
    if _has_sasl(settings):
        options |= {
            "sasl.mechanism": settings.sasl_mechanism,
            "sasl.username": settings.sasl_username,
            "sasl.password": settings.sasl_password,
        }
    return options


def aiokafka_options(settings: KafkaSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "bootstrap_servers": settings.servers,
        "client_id": CLIENT_ID,
        "security_protocol": settings.security_protocol,
    }
    if _has_tls(settings):
        options["ssl_context"] = _ssl_context(settings)
    if _has_sasl(settings):
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password,
        }
    return options


def _has_tls(settings: KafkaSettings) -> bool:
    return settings.security_protocol.endswith("SSL")


def _has_sasl(settings: KafkaSettings) -> bool:
    return settings.security_protocol.startswith("SASL_")


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ssl_cafile)
    if settings.ssl_certfile:
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
    return context
