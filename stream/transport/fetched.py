"""What librdkafka delivers, as our record."""

from typing import Any

from stream.contract.records import Record

Fetched = Any
"""A message of librdkafka, whose stub says that a record may have no partition."""


def record_of(message: Fetched) -> Record:
    """librdkafka's message as our record; its timestamp is the topic's, the append time.

    Without its headers where there are more than 100,000, or the name of one is no UTF-8: Kafka
    takes both, and they decide nothing about a click. librdkafka gives none of the first.
    """
    _, timestamp_ms = message.timestamp()
    try:
        # At a name that is no UTF-8 the Python client (2.16.1) returns a list with a hole in it and
        # leaves an exception behind, which the interpreter's fast path does not see once it is
        # warm: whatever is called next would raise it. Called through map it is raised here.
        headers = next(map(type(message).headers, (message,)))
    except (SystemError, UnicodeDecodeError):
        headers = None
    return Record(
        message.partition(),
        message.offset(),
        timestamp_ms,
        message.key(),
        message.value(),
        tuple(headers) if headers else (),
    )
