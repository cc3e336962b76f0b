"""A record's value, as bytes, becomes a wire click or the reason why not. Never an exception.

A decoder is any callable from bytes to ``WireClick | BadClick``. Today's is ``JsonDecoder``;
another encoding, such as Avro or Protobuf with a schema registry, is one more callable here that is
handed to ``ClickParser``. Which decoded clicks are good is decided in click.py, for all encodings.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import cast

import msgspec

from stream.contract.context import MAX_VALUE_BYTES

MAX_JSON_BYTES = 6 * MAX_VALUE_BYTES + 2
"""The longest JSON string of 64 bytes: every byte escaped, and two quotes."""


class Reason(StrEnum):
    """Why a click is bad: the metric label and the dead letter's header."""

    UNREADABLE = "unreadable"
    TOO_LARGE = "too_large"
    NULL_KEY = "null_key"
    NULL_VALUE = "null_value"
    NOT_JSON = "not_json"
    BAD_FIELD = "bad_field"
    BAD_SESSION_ID = "bad_session_id"
    KEY_MISMATCH = "key_mismatch"
    BAD_ITEM_ID = "bad_item_id"
    TIMESTAMP_TOO_SMALL = "timestamp_too_small"
    BAD_TIMESTAMP = "bad_timestamp"
    UNPROCESSABLE = "unprocessable"


class BadClick(msgspec.Struct, frozen=True):
    """A record without a good click: the reason, and a sentence for whoever reads dead letters."""

    reason: Reason
    detail: str


class WireClick(msgspec.Struct):
    """A decoded value, not yet checked against the rules."""

    session_id: str
    item_id: str
    timestamp_ms: int
    event_id: str | None = None
    event_type: str | None = None

    def texts(self) -> Iterable[str | None]:
        """The values of the columns that the decoder was made for, in their order.

        "" where the click has none, None where it cannot be written as text (see ``text_of``).
        """
        return ()


Decoder = Callable[[bytes], WireClick | BadClick]


class JsonDecoder:
    """Decodes JSON objects; a field called as one of ``columns`` may hold any JSON."""

    def __init__(self, columns: Sequence[str] = ()) -> None:
        # Numbered, since a column's name need not be an identifier. Every click has event_type.
        names = {f"column_{n}": name for n, name in enumerate(columns) if name != "event_type"}
        fields = [
            "event_type" if c == "event_type" else f"column_{n}" for n, c in enumerate(columns)
        ]

        def texts(click: WireClick) -> Iterable[str | None]:
            for field in fields:
                value = getattr(click, field)
                yield text_of(value) if isinstance(value, msgspec.Raw) else value or ""

        json_click = msgspec.defstruct(
            "_JsonClick",
            [(field, msgspec.Raw, msgspec.Raw()) for field in names],
            bases=(WireClick,),
            rename=names,
            namespace={"texts": texts},
        )
        self._decode = msgspec.json.Decoder(cast(type[WireClick], json_click)).decode

    def __call__(self, value: bytes) -> WireClick | BadClick:
        try:
            # msgspec skips the text of fields it does not keep. 0.03 us of a click in ASCII,
            # 0.1 with a few umlauts, 0.5 with 90 Cyrillic letters; the decoding 0.4.
            if not value.isascii():
                value.decode()
            return self._decode(value)
        except msgspec.ValidationError:
            return self._at_leisure(value)
        except NO_JSON as error:
            return BadClick(Reason.NOT_JSON, str(error))

    def _at_leisure(self, value: bytes) -> WireClick | BadClick:
        """What the value is whose first wrong type has ended its decoding.

        A good click, if all that is wrong is an ``event_type`` that is no string: that is context,
        which never makes a click bad, and 3 is "3", as in training.
        """
        try:
            msgspec.json.decode(value, type=msgspec.Raw)  # to its end: not_json comes first
            fields = _decode_fields(value)
            raw = fields.get("event_type", msgspec.Raw(b"null"))
            fields["event_type"] = msgspec.Raw(msgspec.json.encode(text_of(raw) or None))
            return self._decode(msgspec.json.encode(fields))
        except msgspec.ValidationError as error:
            return BadClick(Reason.BAD_FIELD, str(error))
        except NO_JSON as error:
            return BadClick(Reason.NOT_JSON, str(error))

    def further_texts(self, value: bytes) -> dict[str, str | None]:
        """The texts of a good click's fields beyond WireClick's, without those that are null.

        Strings are complete, however long; None as in ``text_of``.
        """
        return {
            name: text_of(raw, max_string_bytes=None)
            for name, raw in _decode_fields(value).items()
            if name not in WireClick.__struct_fields__ and bytes(raw) != b"null"
        }


NO_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""msgspec raises the last for some hundred nested brackets; it is no MsgspecError."""
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def text_of(
    value: bytes | msgspec.Raw, max_string_bytes: int | None = MAX_JSON_BYTES
) -> str | None:
    """The text of a JSON value, as training reads it; "" for no value, None where there is none.

    Both 3 and 3.0 are "3", true is "true", null is "". Arrays, objects, numbers out of range and
    values that are too long have no text. Raises nothing on a part of valid JSON.
    ``max_string_bytes``: of the JSON of a string, None for any length.
    """
    raw = memoryview(value)
    if not len(raw):
        return ""
    max_bytes = max_string_bytes if raw[0] == ord('"') else MAX_JSON_BYTES
    if max_bytes is not None and len(raw) > max_bytes:
        return None
    try:
        decoded = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None
    match decoded:
        case None:
            return ""
        case str():
            return decoded
        case bool() | int():
            return str(decoded).lower()
        case float():
            return _float_text(decoded)
    return None


def _float_text(number: float) -> str:
    """As Polars writes it: whole numbers as int64, shortest digits, 0.00001 and 1e-7."""
    if number.is_integer() and -(2.0**63) <= number < 2.0**63:
        return str(int(number))
    text = repr(number)
    digits, is_small, exponent = text.partition("e-")
    if not is_small:
        return text
    if exponent != "05":
        return f"{digits}e-{int(exponent)}"
    sign = "-" if number < 0 else ""
    return f"{sign}0.0000{digits.lstrip('-').replace('.', '')}"
