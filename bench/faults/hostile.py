"""Records that no shop should send, made from good clicks by a seed: every one may come.

``python -m bench.fuzz`` mixes them into good traffic. Some stay good clicks: docs/contract.md says
which. The rest are dead letters.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec

from bench.faults.wire import NamedBytes

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
MINUTE_MS, YEAR_MS = 60_000, 365 * 24 * 3_600_000
_MAX_BYTES = 1_048_588
"""The topic's largest batch."""
_FIELDS = (b"session_id", b"item_id", b"timestamp_ms", b"event_id", b"event_type")
_VALUES = (
    *(b"null", b"true", b'""', b"[]", b"{}", b"-1", b"0", b"1.5", b"1e999", b"NaN", b"-Infinity"),
    *(b"9223372036854775807", b"9223372036854775808", b"1" * 40, b"1" * 5000, b"01", b"+1", b"1e3"),
    *(b'"\\u0000position"', b'"\\u0000"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"'),
    *(b'"\x00"', b'"\xff\xfe"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\\u001b]0;x\\u0007"'),
    *(b'"' + b"x" * 256 + b'"', b'"' + b"\xc3\xa9" * 129 + b'"', b'"' + b"\\u0001" * 256 + b'"'),
    *(b"[" * 50_000 + b"]" * 50_000, b'{"a":' * 600 + b"1" + b"}" * 600, b"'s'", b"0x10", b"{"),
)
_KEYS = (
    *(None, b"", b"\0", b"\0position", b"\0aborted", b"\xff\xfe", b"\xed\xa0\x80", b"another"),
    *(b"x" * 256, b"x" * 257, b"x" * 100_000, "\N{GRINNING FACE}".encode(), b"\x1b[2J"),
)
_PREFIXES = (b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\x1f\x8b\x08", b"\0\0\0\0\x01", b" \n\t", b"[")
_HEADERS: tuple[Sequence[NamedBytes], ...] = (
    [(b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")],
    [(b"traceparent", None), (b"traceparent", b""), (b"traceparent", b"\xff")],
    [(b"reason", b"mine"), (b"topic", b"mine"), (b"offset", b"-1"), (b"source", b"x-0-0")],
    [(b"\xff\xfe", b"x")],
    [(b"", b""), (b"", None)],
    [(b"a\0b", b"x")],
    [(b"\xc3\xa9" * 20_000, b"x" * 100_000)],
    [(b"n%d" % n, None) for n in range(1000)],
    [(b"", b"")] * 120_000,
)
_CLOCKS = (-1, 0, 1_700_000_000, 1_700_000_000_000_000, 2**63 - 1)


class Shot(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record to send. ``pad``: bytes of x behind the value. ``why``: what it has shown."""

    kind: str
    key: bytes | None
    value: bytes | None
    headers: list[NamedBytes] = []
    timestamp_ms: int | None = None
    """The record's own; None: now."""
    codec: str = "none"
    pad: int = 0
    why: str = ""

    @property
    def body(self) -> bytes | None:
        """The value as it is sent."""
        return None if self.value is None else self.value + b"x" * self.pad


def hostile(random: Random, key: bytes, value: bytes, now_ms: int) -> Shot:
    """A record made of a good click, whose own time is about ``now_ms``."""
    kind = random.choices(KINDS, _WEIGHTS)[0]
    if kind == "bits":
        raw = bytearray(value)
        for _ in range(random.randint(1, 8)):
            raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
        return Shot(kind, key, bytes(raw))
    if kind == "cut":
        return Shot(kind, key, value[: random.randrange(len(value))])
    if kind == "splice":
        begin, end, to = (random.randrange(len(value)) for _ in range(3))
        return Shot(kind, key, value[:to] + value[begin:end] + value[to + random.randint(0, 3) :])
    if kind == "random":
        return Shot(kind, random.choice((key, *_KEYS)), random.randbytes(random.randrange(300)))
    if kind == "field":
        return Shot(kind, key, _set(random, value, random.choice(_VALUES)))
    if kind == "twice":  # of two fields with a name the last one counts
        return Shot(kind, key, value[:-1] + b"," + _set(random, value, random.choice(_VALUES))[1:])
    if kind == "prefix":
        return Shot(kind, key, random.choice(_PREFIXES) + value)
    if kind == "key":
        odd = random.choice(_KEYS)
        own = odd is not None and random.random() < 0.5
        return Shot(
            kind, odd, _set(random, value, _text(odd or b""), b"session_id") if own else value
        )
    if kind == "nothing":
        return Shot(kind, random.choice((key, None, b"")), random.choice((None, b"")))
    if kind == "time":
        ahead_ms = random.choice(
            (-YEAR_MS, -3 * 60 * MINUTE_MS, 4 * MINUTE_MS, 6 * MINUTE_MS, YEAR_MS)
        )
        at_ms = random.choice((now_ms + ahead_ms, *_CLOCKS, 2**64, 10**30, 1))
        return Shot(kind, key, _set(random, value, b"%d" % at_ms, b"timestamp_ms"))
    if kind == "clock":
        return Shot(kind, key, value, timestamp_ms=random.choice(_CLOCKS), codec=_raw_codec(random))
    if kind == "headers":
        odd_value = random.choice((value, value, b"no click"))
        return Shot(kind, key, odd_value, [*random.choice(_HEADERS)], codec=_raw_codec(random))
    pad = random.choice((_MAX_BYTES - 300, _MAX_BYTES, 3_000_000))
    # Spaces would leave a good click; x does not. In a field of its own it does.
    inside = value[:-1] + b',"more":"' + b"x" * pad + b'"}'
    codec = random.choice(CODECS)
    return random.choice(
        (Shot(kind, key, value, codec=codec, pad=pad), Shot(kind, key, inside, codec=codec))
    )


_SHARES = {
    **{"bits": 20, "cut": 8, "splice": 10, "random": 8, "field": 20, "twice": 8, "prefix": 4},
    **{"key": 6, "nothing": 3, "time": 6, "clock": 3, "headers": 3.7, "size": 0.3},
}
KINDS, _WEIGHTS = tuple(_SHARES), tuple(_SHARES.values())


def _set(random: Random, value: bytes, to: bytes, field: bytes | None = None) -> bytes:
    """A click's JSON with another value in one field."""
    name = field or random.choice(_FIELDS)
    pattern = b'("%b": )("[^"]*"|[0-9]+)' % name
    found = re.search(pattern, value)
    if found is None:
        return value[:-1] + b', "%b": %b}' % (name, to)
    return value[: found.start(2)] + to + value[found.end(2) :]


def _text(key: bytes) -> bytes:
    try:
        return msgspec.json.encode(key.decode())
    except UnicodeDecodeError:
        return b'"%b"' % key


def _raw_codec(random: Random) -> str:
    return random.choice(("none", "gzip"))


class Corpus:
    """Records that have shown something, a line each; every run sends them first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_bytes().splitlines() if path.exists() else []
        self.shots = [msgspec.json.decode(line, type=Shot) for line in lines]

    def add(self, shot: Shot, why: str) -> None:
        """Keep a record that is not too large to be kept, and not kept for that already."""
        line = msgspec.json.encode(msgspec.structs.replace(shot, why=why))
        if len(line) < 8_000 and not any(kept.why == why for kept in self.shots):
            self.shots.append(msgspec.json.decode(line, type=Shot))
            with self._path.open("ab") as file:
                file.write(line + b"\n")
