"""Whether a record of a topic that workers write to is one of theirs: anybody may write there."""

import msgspec

from stream.contract.decoders import NO_JSON
from stream.contract.messages import Recommendation
from stream.contract.records import Record, Target


class Answer(msgspec.Struct):
    """A recommendation, and the topic-partition-offset of the click that it answers."""

    source: str
    recommendation: Recommendation


class DeadLetter(msgspec.Struct):
    """Our headers of a dead letter: the place of the bad click, and why it is bad."""

    topic: str
    partition: int
    offset: int
    reason: str


class _Headers(msgspec.Struct):
    source: str


_decode = msgspec.json.Decoder(Recommendation).decode


def read_ours(record: Record, target: Target) -> Answer | DeadLetter | None:
    """What a worker has said with a record, None if no worker has written it; any bytes will do."""
    # A dead letter has its click's own headers, which may be any bytes; ours are the last.
    headers = {n: v.decode(errors="replace") for n, v in record.headers if v is not None}
    try:
        if target == Target.DEAD_LETTERS:
            return msgspec.convert(headers, DeadLetter, strict=False)
        source = msgspec.convert(headers, _Headers).source
        return Answer(source, _decode(record.value or b""))
    except NO_JSON:
        return None
