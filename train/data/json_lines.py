"""JSON Lines: an object a line, as a table of its keys.

A nested key is called by its path, such as ``properties.product_id``. A path through a list of
objects, such as ``events.aid``, makes a record of each of them; where the list is empty or missing
the line is one record without them. Numbers keep the text that they have in the file, what is
nested deeper is JSON where the file's beginning has it so, or else nothing, and a line that is no
object is one malformed record.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl

from train.command import TrainError
from train.data.text import LINE, MALFORMED, RECORD

_AT_ONCE = 50_000
"""Lines that are made a table at the same time."""
_SHOWN = 40
"""Characters of a value in a sentence."""
_DECODER = msgspec.json.Decoder(float_hook=str)


class Keys(NamedTuple):
    """Which columns the lines of a file have."""

    names: list[str]
    exploded: str | None
    """Path of the list whose elements are records."""
    nested: dict[str, str]
    """Those of the names that lists or objects stand at, too, with one of them."""

    def unusable(self) -> dict[str, str]:
        """The columns that have no value for each record, and why."""
        return {
            name: f"has values such as {value}; expected one value in each record: name a path "
            "into it, or write a record for each of its elements"
            for name, value in self.nested.items()
        }


def find_keys(path: Path, head: bytes, is_whole: bool, wanted: Collection[str]) -> Keys:
    """The keys in the beginning of a file. Raises TrainError where no line is an object, or where
    the columns that are wanted stand in two lists."""
    if head.lstrip()[:1] == b"[":
        raise TrainError(
            f"{path} is one JSON array; expected an object a line: convert it, such as with "
            f"jq -c '.[]' {path.name} > {path.stem}.jsonl"
        )
    lines = head.split(b"\n")
    found: dict[str, str | None] = {}  # the path of each leaf, and the list that it is in
    nested: dict[str, Any] = {}
    for line in lines if is_whole else lines[:-1] or lines:
        _walk(_decode(line), "", None, found, nested)
    if not found:
        raise TrainError(f"{path} is read as JSON, but no line is an object; expected one a line")
    lists = {name: found[name] for name in wanted if found.get(name) is not None}
    if len(set(lists.values())) > 1:
        named = " and ".join(f"{name} (in {inside})" for name, inside in sorted(lists.items()))
        raise TrainError(f"{path}: {named} stand in two lists; a click's columns must share one")
    exploded = next(iter(lists.values()), None)
    names = [name for name, inside in found.items() if inside in (None, exploded)]
    shown = {name: _text(nested[name]) or "" for name in names if name in nested}
    return Keys(names, exploded, {name: text[:_SHOWN] for name, text in shown.items()})


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        found = _DECODER.decode(line)
    except UnicodeDecodeError:
        return _decode(line.decode(errors="replace").encode())
    except (msgspec.DecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _walk(
    value: Any,
    path: str,
    inside: str | None,
    found: dict[str, str | None],
    nested: dict[str, Any],
) -> None:
    if value and isinstance(value, dict | list):
        nested.setdefault(path, value)
    if isinstance(value, dict):
        for key, inner in value.items():
            _walk(inner, f"{path}.{key}" if path else key, inside, found, nested)
    elif isinstance(value, list) and inside is None and any(isinstance(v, dict) for v in value):
        for element in value:
            _walk(element, path, path, found, nested)
    elif path:
        found[path] = found.get(path) or inside


def frames(
    chunks: Iterator[bytes], keys: Keys, columns: Sequence[str], *, with_record: bool
) -> Iterator[pl.DataFrame]:
    """The records, in pieces: these columns, MALFORMED and, ``with_record``, LINE and RECORD."""
    table: dict[str, list[Any]] = {name: [] for name in (*columns, MALFORMED)}
    if with_record:
        table |= {LINE: [], RECORD: []}
    schema: dict[str, pl.DataType] = {name: pl.String() for name in table}
    schema |= {MALFORMED: pl.Boolean()} | ({LINE: pl.Int64()} if with_record else {})
    outer = [name for name in columns if not _is_inside(name, keys.exploded)]
    inner = [name for name in columns if _is_inside(name, keys.exploded)]
    for number, line in enumerate(_lines(chunks), 1):
        if not line.strip():
            continue
        found = _decode(line)
        values = {name: _value(found, name, name in keys.nested) for name in outer}
        elements: list[Any] = [None]
        if keys.exploded is not None:
            several = _at(found, keys.exploded)
            elements = several or [None] if isinstance(several, list) else [several]
        for element in elements:
            for name in outer:
                table[name].append(values[name])
            for name in inner:
                rest = name[len(keys.exploded or "") + 1 :]
                table[name].append(_value(element, rest, name in keys.nested))
            table[MALFORMED].append(found is None)
            if with_record:
                table[LINE].append(number)
                table[RECORD].append(line.decode(errors="backslashreplace"))
        if len(table[MALFORMED]) >= _AT_ONCE:
            yield pl.DataFrame(table, schema=schema)
            table = {name: [] for name in table}
    if table[MALFORMED]:
        yield pl.DataFrame(table, schema=schema)


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.removesuffix(b"\r") for line in lines)
    yield rest


def _is_inside(name: str, exploded: str | None) -> bool:
    return exploded is not None and name.startswith(exploded + ".")


def _at(value: Any, path: str) -> Any:
    """The value at a path; a key that holds dots itself comes first."""
    if not isinstance(value, dict):
        return None
    if path in value:
        return value[path]
    begin = path.find(".")
    while begin >= 0:
        if (inner := value.get(path[:begin])) is not None:
            found = _at(inner, path[begin + 1 :])
            if found is not None:
                return found
        begin = path.find(".", begin + 1)
    return None


def _value(record: Any, path: str, is_nested: bool) -> str | None:
    value = _at(record, path)
    return None if isinstance(value, dict | list) and not is_nested else _text(value)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return msgspec.json.encode(value).decode()
