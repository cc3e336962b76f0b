"""Records that no client library sends: Kafka's record format and one Produce request, by hand.

A library refuses a header's name that is no UTF-8, a timestamp of -1 or a batch larger than it
likes; the broker takes them, and so must the workers.
"""

import socket
import struct
import time
import zlib
from collections.abc import Sequence

from aiokafka.record.util import calc_crc32c

NamedBytes = tuple[bytes, bytes | None]
TIMEOUT_S = 30.0
_GZIP = 31
"""zlib's name for gzip with the largest window."""


class RefusedError(Exception):
    """The broker's error code for a batch that it did not take."""


class RawProducer:
    """Appends batches to the partitions of a cluster's only broker, one request at a time."""

    def __init__(self, bootstrap_servers: str) -> None:
        host, _, port = bootstrap_servers.rpartition(":")
        self._address = host, int(port)
        self._socket: socket.socket | None = None

    def send(self, topic: str, partition: int, batch: bytes) -> int:
        """Return the offset of the first record. Raises RefusedError, or OSError without a broker.

        After an OSError nobody knows whether the broker has appended it.
        """
        name = topic.encode()
        request = b"".join(
            (
                struct.pack(">hhih", 0, 3, 1, -1),  # Produce 3, correlation id, no client id
                struct.pack(">hhi", -1, -1, 10_000),  # no transaction, all replicas, timeout
                struct.pack(">ih", 1, len(name)) + name,
                struct.pack(">iii", 1, partition, len(batch)) + batch,
            )
        )
        try:
            answer = self._ask(request)
        except OSError:
            self.close()
            raise
        # Correlation id, one topic, its name, one partition and its number come first.
        error, offset = struct.unpack_from(">hq", answer, 4 + 4 + 2 + len(name) + 4 + 4)
        if error:
            raise RefusedError(f"error code {error}")
        return int(offset)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, request: bytes) -> bytes:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, TIMEOUT_S)
        self._socket.sendall(struct.pack(">i", len(request)) + request)
        return self._receive(*struct.unpack(">i", self._receive(4)))

    def _receive(self, n: int) -> bytes:
        assert self._socket is not None
        found = bytearray()
        while len(found) < n:
            part = self._socket.recv(n - len(found))
            if not part:
                raise ConnectionResetError("the broker has closed the connection")
            found += part
        return bytes(found)


def one_record(
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[NamedBytes] = (),
    *,
    timestamp_ms: int | None = None,
    gzip: bool = False,
) -> bytes:
    """A batch of one record."""
    of_record = record(key, value, headers)
    packed = gzip_member(of_record) if gzip else of_record
    return batch_of(packed, 1, codec=int(gzip), timestamp_ms=timestamp_ms)


def record(
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[NamedBytes] = (),
    *,
    number: int = 0,
    key_length: int | None = None,
    value_length: int | None = None,
    length: int | None = None,
) -> bytes:
    """The bytes of a record, the ``number``-th of its batch; its lengths may be false ones."""
    names = b"".join(_sized(name) + _sized(of_name) for name, of_name in headers)
    of_key, of_value = _sized(key, key_length), _sized(value, value_length)
    body = b"\0\0" + _varint(number) + of_key + of_value + _varint(len(headers)) + names
    return _varint(len(body) if length is None else length) + body


def batch_of(
    records: bytes, n_records: int, *, codec: int = 0, timestamp_ms: int | None = None
) -> bytes:
    """A batch of records, packed already: codec 1 is gzip, 4 is zstd."""
    at_ms = time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
    last = n_records - 1
    # Codec, last offset, first and last timestamp, no producer, number of records.
    fields = struct.pack(">hiqqqhii", codec, last, at_ms, at_ms, -1, -1, -1, n_records) + records
    rest = struct.pack(">ibI", -1, 2, calc_crc32c(fields)) + fields
    return struct.pack(">qi", 0, len(rest)) + rest


def gzip_member(plain: bytes) -> bytes:
    """One gzip stream."""
    packer = zlib.compressobj(wbits=_GZIP)
    return packer.compress(plain) + packer.flush()


def _sized(value: bytes | None, length: int | None = None) -> bytes:
    if length is None:
        length = -1 if value is None else len(value)
    return _varint(length) + (value or b"")


def _varint(number: int) -> bytes:
    zigzag, out = (number << 1) ^ (number >> 63), bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)
