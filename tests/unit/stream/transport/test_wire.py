"""The requests of a transaction against bytes written by hand from Kafka's protocol guide."""

from io import BytesIO

import pytest
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.api import RequestStruct

from stream.transport.wire import (
    ApiVersions,
    ApiVersionsResponse,
    EndTxn,
    EndTxnResponse,
    InitProducerId,
    InitProducerIdResponse,
    Produce,
    ProduceResponse,
    TxnOffsetCommit,
    TxnOffsetCommitResponse,
    by_topic,
    from_topics,
)

PRODUCER = "00000000000003e8 0007"  # id 1000, epoch 7
REQUESTS: list[tuple[RequestStruct, int, int, str]] = [
    (
        InitProducerId("a-0", 10_000, -1, -1, {}),
        *(22, 5),
        "04 612d30 00002710 ffffffffffffffff ffff 00",
    ),
    (
        TxnOffsetCommit(
            *("a-0", "g", 1000, 7, 3, "m", None),
            by_topic({("t", 2): (41, -1, None)}),
            {},
        ),
        *(28, 5),
        # ids, producer, generation, member, no instance; one topic of one partition: its number,
        # the offset, no leader's epoch, no metadata
        f"04 612d30 02 67 {PRODUCER} 00000003 02 6d 00"
        "02 02 74 02 00000002 0000000000000029 ffffffff 00 00 00 00",
    ),
    (
        Produce("a-0", -1, 10_000, by_topic({("t", 0): (b"xy",), ("t", 1): (b"z",)}), {}),
        *(0, 12),
        "04 612d30 ffff 00002710 02 02 74 03 00000000 03 7879 00 00000001 02 7a 00 00 00",
    ),
    (EndTxn("a-0", 1000, 7, True, {}), 26, 5, f"04 612d30 {PRODUCER} 01 00"),
    (EndTxn("a-0", 1000, 7, False, {}), 26, 5, f"04 612d30 {PRODUCER} 00 00"),
    (ApiVersions("n", "0", {}), 18, 3, "02 6e 02 30 00"),
]


@pytest.mark.parametrize(("request_", "key", "version", "expected"), REQUESTS)
def test_a_request_has_the_bytes_of_its_version(
    request_: RequestStruct, key: int, version: int, expected: str
) -> None:
    assert (key, version) == (request_.API_KEY, request_.API_VERSION)
    assert request_.encode() == bytes.fromhex(expected)


@pytest.mark.parametrize(("request_", "key", "version", "expected"), REQUESTS)
def test_a_broker_that_does_not_know_the_version_is_not_asked(
    request_: RequestStruct, key: int, version: int, expected: str
) -> None:
    assert request_.prepare({key: (0, version)}) is request_
    for known in ({}, {key: (0, version - 1)}, {key: (version + 1, version + 2)}):
        with pytest.raises(IncompatibleBrokerVersion):
            request_.prepare(known)


def test_the_responses_about_a_producer_are_read() -> None:
    for kind in (InitProducerIdResponse, EndTxnResponse):
        found = kind.decode(BytesIO(bytes.fromhex(f"00000000 0033 {PRODUCER} 00")))
        said = (found.error_code, found.producer_id, found.producer_epoch)
        assert said == (51, 1000, 7)


def test_the_responses_by_partition_are_read() -> None:
    committed = TxnOffsetCommitResponse.decode(
        BytesIO(bytes.fromhex("00000000 02 02 74 03 00000000 0000 00 00000001 0016 00 00 00"))
    )
    assert from_topics(committed.topics) == {("t", 0): 0, ("t", 1): 22}
    # base offset, append time, start of the log, no record's error, no message; the new leader
    # (id 1 of epoch 4) and the address of a node are tags that a client may pass over
    produced = ProduceResponse.decode(
        BytesIO(
            bytes.fromhex(
                "02 02 74 02 00000003 0006 ffffffffffffffff ffffffffffffffff ffffffffffffffff 01 00"
                "01 00 09 00000001 00000004 00 00 00000000"
                "01 00 01 01"
            )
        )
    )
    assert from_topics(produced.topics) == {("t", 3): 6}


def test_the_level_of_a_clusters_feature_is_read_from_its_tag() -> None:
    # no error, one api with its range of versions, the throttle time; then the tags:
    # tag 0, what the broker could do; tag 1, an epoch; tag 2, what the cluster has agreed on
    name = b"transaction.version"
    row = bytes([len(name) + 1]) + name
    supported = b"\2" + row + bytes.fromhex("0000 0003 00")
    finalized = b"\2" + row + bytes.fromhex("0002 0001 00")
    tags = b"\3" + b"".join(
        bytes([tag, len(value)]) + value
        for tag, value in ((0, supported), (1, bytes(8)), (2, finalized))
    )
    begin = bytes.fromhex("0000 02 0012 0000 0004 00 00000000")
    found = ApiVersionsResponse.decode(BytesIO(begin + tags))
    assert found.feature("transaction.version") == 2
    assert found.feature("kraft.version") == 0
    without = ApiVersionsResponse.decode(BytesIO(begin + b"\0"))
    assert without.feature("transaction.version") == 0


def test_the_answer_about_versions_has_the_old_header_as_every_client_must_read_it() -> None:
    rest = BytesIO(bytes.fromhex("0000002a 0000"))
    assert ApiVersions("n", "0", {}).parse_response_header(rest).correlation_id == 42
    assert rest.read() == b"\0\0", "no tags are read"


def test_fields_by_partition_are_grouped_by_topic() -> None:
    fields = {("t", 1): (5,), ("u", 0): (6,), ("t", 0): (7,)}
    assert by_topic(fields) == [("t", [(1, 5, {}), (0, 7, {})], {}), ("u", [(0, 6, {})], {})]
    assert from_topics(by_topic(fields)) == {("t", 1): 5, ("u", 0): 6, ("t", 0): 7}
