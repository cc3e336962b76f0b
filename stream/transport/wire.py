"""The requests of a transaction in Kafka's second transaction protocol (KIP-890).

Produce 12 and TxnOffsetCommit 5 add their partitions to the transaction by themselves, and EndTxn 5
hands out the epoch of the next one: three round trips where the first protocol takes five, and one
Produce request for all partitions of a broker. aiokafka's client carries them (connections, TLS,
SASL, metadata), but itself speaks the first protocol alone. Fields as in Kafka's protocol guide.
"""

from collections.abc import Iterable
from io import BytesIO
from typing import Any, ClassVar, Self

from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.api import RequestStruct, Response, ResponseHeader_v0
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactBytes,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

_TEXT = CompactString("utf-8")
_TAGS = ("tags", TaggedFields)
_PRODUCER = (("producer_id", Int64), ("producer_epoch", Int16))
_THROTTLE = ("throttle_time_ms", Int32)


def _by_partition(*fields: tuple[str, Any]) -> CompactArray:
    """An array of topics, each with an array of partitions that hold these fields."""
    partitions = CompactArray(("partition", Int32), *fields, _TAGS)
    return CompactArray(("topic", _TEXT), ("partitions", partitions), _TAGS)


class _Request(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    """A request of one version, which the broker knows or not."""

    FLEXIBLE_VERSION: ClassVar[bool] = True
    API_KEY: ClassVar[int] = -1
    API_VERSION: ClassVar[int] = -1
    RESPONSE_TYPE: ClassVar[type[Response]] = Response
    SCHEMA: ClassVar[Schema] = Schema()

    def prepare(self, versions: dict[int, tuple[int, int]]) -> Self:
        """As aiokafka's connection asks for it. Raises IncompatibleBrokerVersion."""
        first, last = versions.get(self.API_KEY, (0, -1))
        if not first <= self.API_VERSION <= last:
            raise IncompatibleBrokerVersion(f"{type(self).__name__} {self.API_VERSION} is unknown")
        return self


class InitProducerIdResponse(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 22, 5
    SCHEMA = Schema(_THROTTLE, ("error_code", Int16), *_PRODUCER, _TAGS)


class InitProducerId(_Request):
    """Fence a transactional id: its open transaction is aborted, and its owner cannot write."""

    API_KEY, API_VERSION, RESPONSE_TYPE = 22, 5, InitProducerIdResponse
    SCHEMA = Schema(("transactional_id", _TEXT), ("timeout_ms", Int32), *_PRODUCER, _TAGS)


class TxnOffsetCommitResponse(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 28, 5
    SCHEMA = Schema(_THROTTLE, ("topics", _by_partition(("error_code", Int16))), _TAGS)


class TxnOffsetCommit(_Request):
    """Commit offsets in the transaction, if the member is still of the group's generation."""

    API_KEY, API_VERSION, RESPONSE_TYPE = 28, 5, TxnOffsetCommitResponse
    SCHEMA = Schema(
        ("transactional_id", _TEXT),
        ("group_id", _TEXT),
        *_PRODUCER,
        ("generation_id", Int32),
        ("member_id", _TEXT),
        ("group_instance_id", _TEXT),
        ("topics", _by_partition(("offset", Int64), ("leader_epoch", Int32), ("metadata", _TEXT))),
        _TAGS,
    )


class ProduceResponse(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 0, 12
    SCHEMA = Schema(
        (
            "topics",
            _by_partition(
                ("error_code", Int16),
                ("base_offset", Int64),
                ("log_append_time_ms", Int64),
                ("log_start_offset", Int64),
                ("record_errors", CompactArray(("index", Int32), ("message", _TEXT), _TAGS)),
                ("error_message", _TEXT),
            ),
        ),
        _THROTTLE,
        _TAGS,
    )


class Produce(_Request):
    """Append one batch of records to each partition."""

    API_KEY, API_VERSION, RESPONSE_TYPE = 0, 12, ProduceResponse
    SCHEMA = Schema(
        ("transactional_id", _TEXT),
        ("acks", Int16),
        ("timeout_ms", Int32),
        ("topics", _by_partition(("records", CompactBytes))),
        _TAGS,
    )


class EndTxnResponse(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 26, 5
    SCHEMA = Schema(_THROTTLE, ("error_code", Int16), *_PRODUCER, _TAGS)


class EndTxn(_Request):
    API_KEY, API_VERSION, RESPONSE_TYPE = 26, 5, EndTxnResponse
    SCHEMA = Schema(("transactional_id", _TEXT), *_PRODUCER, ("committed", Boolean), _TAGS)


class DescribeTransactionsResponse(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 65, 0
    SCHEMA = Schema(
        _THROTTLE,
        (
            "transactions",
            CompactArray(
                ("error_code", Int16),
                ("transactional_id", _TEXT),
                ("state", _TEXT),
                ("timeout_ms", Int32),
                ("start_time_ms", Int64),
                *_PRODUCER,
                ("topics", CompactArray(("t", _TEXT), ("p", CompactArray(Int32)), _TAGS)),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class DescribeTransactions(_Request):
    """What has become of the last transaction of an id, as far as its coordinator knows."""

    API_KEY, API_VERSION, RESPONSE_TYPE = 65, 0, DescribeTransactionsResponse
    SCHEMA = Schema(("transactional_ids", CompactArray(_TEXT)), _TAGS)


class ApiVersionsResponse(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 18, 3
    SCHEMA = Schema(
        ("error_code", Int16),
        ("api_keys", CompactArray(("key", Int16), ("first", Int16), ("last", Int16), _TAGS)),
        _THROTTLE,
        _TAGS,
    )

    def feature(self, name: str) -> int:
        """The finalized level of a feature of the cluster; 0 where it has none."""
        level = CompactArray(("name", _TEXT), ("last", Int16), ("first", Int16), _TAGS)
        found = level.decode(BytesIO(self.__dict__["tags"].get(2, b"\1"))) or []
        return {row[0]: int(row[1]) for row in found}.get(name, 0)


class ApiVersions(_Request):
    """What the broker knows, and the features that its cluster has agreed on."""

    API_KEY, API_VERSION, RESPONSE_TYPE = 18, 3, ApiVersionsResponse
    SCHEMA = Schema(("software_name", _TEXT), ("software_version", _TEXT), _TAGS)

    def parse_response_header(self, read_buffer: BytesIO | bytes) -> ResponseHeader_v0:
        """Of version 0, always: a client must be able to read it before it knows the broker."""
        return ResponseHeader_v0.decode(read_buffer)


def by_topic(fields: dict[tuple[str, int], tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Fields by (topic, partition) as the array of topics that a request holds."""
    topics: dict[str, list[tuple[Any, ...]]] = {}
    for (topic, partition), values in fields.items():
        topics.setdefault(topic, []).append((partition, *values, {}))
    return [(topic, partitions, {}) for topic, partitions in topics.items()]


def partitions_by_topic(tps: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """The partitions of each topic."""
    topics: dict[str, list[int]] = {}
    for topic, partition in tps:
        topics.setdefault(topic, []).append(partition)
    return topics


def from_topics(topics: list[tuple[Any, ...]]) -> dict[tuple[str, int], int]:
    """The error code by (topic, partition) of a response's array of topics."""
    return {(topic, p[0]): p[1] for topic, partitions, _ in topics for p in partitions}
