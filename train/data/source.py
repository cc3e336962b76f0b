"""A click log as a lazy table: of a file, a folder or glob of files, or a URL.

Of Parquet, columns that nobody asks for are never decoded. Text is read in pieces, each time that
the table is collected.
"""

import glob
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, cast

import msgspec
import polars as pl
import structlog
from polars.io.plugins import register_io_source

from train.command import TrainError
from train.data.dialect import FOUND_OUT, Described, Form, describe, find_encoding
from train.data.ids import text_column
from train.data.json_lines import Keys, find_keys
from train.data.json_lines import frames as json_frames
from train.data.text import (
    HEAD_BYTES,
    LINE,
    MALFORMED,
    RECORD,
    Dialect,
    Reader,
    Tally,
    open_bytes,
    text_chunks,
)

FILE = "\0file"
"""Column of a log of several files: the row's file."""
_ELEMENT = "\0element"
_PARQUET = (".parquet", ".pq")
_TEXT = (".csv", ".tsv", ".tab", ".txt", ".dat", ".log", "")
_JSON = (".jsonl", ".ndjson", ".json")
_SHOWN = 5
REJECTED = ".rejected.csv"
"""How the files end that this package writes beside a log."""
_NO_LOG = "collect.json"
"""Of a collected log: where it goes on."""
_PACKED = (".gz", ".zst")
_PACKS, _SMALL_BYTES = 8, 2**30
"""Compressed text is taken to be so many times its size."""
_AT_ONCE = 16
"""Files whose schemas are read at the same time: a remote store takes some 50 ms for each."""
_LAKES = {
    "_delta_log": "Delta Lake",
    "metadata/*.metadata.json": "Iceberg",
    ".hoodie": "Hudi",
}
_QUOTED = (
    "{} fields begin with a quote and are read with it; if the quotes are no part of the values, "
    "set --columns quoting=rfc"
)
_JOINED = (
    "{} records span more than one line and have as many separators as if each line were a record; "
    "if no field is quoted, set --columns quoting=none"
)
_WIDENINGS = (
    (pl.Int8(), pl.Int16(), pl.Int32(), pl.Int64()),
    (pl.UInt8(), pl.UInt16(), pl.UInt32(), pl.UInt64()),
    (pl.Float32(), pl.Float64()),
)


log = structlog.get_logger()


class Source(NamedTuple):
    """The rows of a log, unchecked; of a text file all columns are text."""

    table: pl.LazyFrame
    """May have the columns MALFORMED and FILE besides the log's own."""
    is_text: bool
    """Bytes that are not UTF-8 were replaced by U+FFFD."""
    unusable: dict[str, str]
    """Columns that no click can be read from, some of them left out of the table, and why: what
    follows the column's name in a sentence."""
    with_records: Callable[[], pl.LazyFrame]
    """The table with LINE and RECORD, which take longer to read."""
    n_records: Callable[[], int]
    """Records in the files; of text, those that the last whole reading of the table found."""
    found_out: Callable[[], dict[str, str]] = dict
    """How text is read, where it is not plain and was not said; once it was read wholly, as is the
    next."""
    doubts: Callable[[], list[str]] = list
    """What of it may have to be said otherwise, a sentence each."""
    is_small: bool = False
    """Text of which some columns may be held in memory."""


def open_log(path: str | Path, form: Form = FOUND_OUT, wanted: Collection[str] = ()) -> Source:
    """The log at ``path``, whose files are read when the table is collected.

    A Parquet or text file (text also .gz or .zst); a folder (all files below it) or a glob of files
    of one of these kinds, in order of their names; a URL (s3://, gs://, az://, https://, file://)
    of a Parquet file, a glob of them or, ending in a slash, a folder. Files of a folder whose names
    begin with a dot or underscore are skipped. A column that a file lacks is null there. ``form``
    says how text is read, and ``wanted`` which columns it should have. Raises TrainError.
    """
    if "://" in str(path):
        with reading(path):
            return _scan_url(str(path), wanted)
    path = Path(path)
    with reading(path):
        if path.is_dir() or (any(c in str(path) for c in "*?[") and not path.exists()):
            _refuse_lake(path)
            files = _files(path)
            if _kind(files[0]) == "parquet":
                return _scan_files(path, files, wanted)
            return _scan_texts(path, files, form, wanted, is_many=True)
        if _kind(path) == "parquet":
            _check_is_parquet(path)
            return _parquet(path, pl.scan_parquet(path, glob=False), {}, wanted)
        return _scan_texts(path, [path], form, wanted, is_many=False)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what opening or collecting the log raises into a TrainError of one sentence."""
    try:
        yield
    except pl.exceptions.NoDataError:
        raise TrainError(f"{path} is empty: it has no header") from None
    except FileNotFoundError:
        raise TrainError(f"{path} does not exist") from None
    except (OSError, EOFError, pl.exceptions.PolarsError) as error:
        first_line = (str(error) or repr(error)).splitlines()[0]
        raise TrainError(f"{path} cannot be read: {first_line}") from error


def _scan_url(url: str, wanted: Collection[str]) -> Source:
    if not url.lower().endswith(_PARQUET) and not url.endswith("/"):
        raise TrainError(f"{url}: expected a URL of .parquet files, or of a folder that ends in /")
    if not url.endswith("/") and not any(c in url for c in "*?["):
        return _scan_files(url, [url], wanted)
    # Only Polars can list files there. It skips empty files, which object stores have for folders.
    listed = pl.scan_parquet(
        url + "**/*.parquet" if url.endswith("/") else url,
        include_file_paths=FILE,
        missing_columns="insert",
        extra_columns="ignore",
        hive_partitioning=False,
        hidden_file_prefix=(".", "_"),
    )
    return _scan_files(url, sorted(listed.select(FILE).unique().collect()[FILE]), wanted)


def _kind(path: Path) -> str:
    """parquet, JSON or text, by the file's name; "" for any other."""
    name = path.name.lower()
    if name.endswith(_PARQUET):
        return "parquet"
    if _is_packed(path):
        name = path.stem.lower()
    suffix = Path(name).suffix
    if suffix in _JSON:
        return "" if name == _NO_LOG else "JSON"
    return "text" if suffix in _TEXT else ""


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() in _PACKED


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = [
            file
            for file in path.rglob("*")
            if file.is_file()
            and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        ]
    else:
        found = [Path(file) for file in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - ** too
        found = [file for file in found if file.is_file()]
    found = sorted(file for file in found if not file.name.endswith(REJECTED))
    files = [file for file in found if _kind(file) and file.stat().st_size]
    if others := [file.name for file in found if file not in files and file.name != _NO_LOG]:
        log.warning(
            "files_left_out",
            clicks=str(path),
            files=len(others),
            such_as=", ".join(others[:_SHOWN]),
            note="empty, or of no kind that is read: rename or unpack what belongs to the log",
        )
    if not files:
        raise TrainError(
            f"{path} contains no .parquet file and no text file such as .csv or .tsv.gz"
        )
    first = files[0]
    for other in files:
        if _kind(other) != _kind(first):
            raise TrainError(
                f"{path} has {first.name} and {other.name}, which are not of one kind; name one "
                "kind by a glob such as '*.parquet'"
            )
    return files


def _refuse_lake(path: Path) -> None:
    folder = path if path.is_dir() else path.parent
    for sign, lake in _LAKES.items():
        if folder.is_dir() and next(folder.glob(sign), None) is not None:
            raise TrainError(
                f"{path} is a {lake} table, which has files of removed rows beside the live ones; "
                "expected plain files: write its rows to a folder of Parquet files, and give that"
            )


def _check_is_parquet(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic and magic != b"PAR1":
        raise TrainError(
            f"{path} cannot be read: it is not a Parquet file, though its name says so"
        )


def _scan_files(path: Path | str, files: Iterable[Path | str], wanted: Collection[str]) -> Source:
    """The files as one table with every column that any of them has. Integers in one file and
    floats, decimals or text in another are text, the same for the same whole number."""
    names = [str(file) for file in files]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        schemas = dict(zip(names, pool.map(_read_schema, names), strict=True))
    found: dict[str, set[pl.DataType]] = {}
    for columns in schemas.values():
        for name, dtype in columns.items():
            found.setdefault(name, set()).add(dtype)
    widest = {name: _widest(dtypes) for name, dtypes in found.items()}
    schema = {name: dtype for name, dtype in widest.items() if dtype is not None}
    as_text = [name for name in widest if name not in schema and _have_texts(found[name])]
    unusable = {
        name: f"has types {' and '.join(sorted(map(str, found[name])))} in its files; expected one"
        for name in widest
        if name not in schema and name not in as_text
    }

    def types(file: str) -> tuple[pl.DataType, ...]:
        return tuple(schemas[file].get(name, pl.Null()) for name in as_text)

    def scan(files: Iterable[str], types: Sequence[pl.DataType]) -> pl.LazyFrame:
        own = dict(zip(as_text, types, strict=True))
        table = pl.scan_parquet(
            list(files),
            glob=False,
            schema=schema | own,
            cast_options=pl.ScanCastOptions(integer_cast="upcast", float_cast="upcast"),
            missing_columns="insert",
            extra_columns="ignore",
            include_file_paths=FILE,
        )
        return table.with_columns(text_column(name, dtype) for name, dtype in own.items())

    # Neighbours of the same types are read at once; the order of the files stays.
    tables = [scan(group, key) for key, group in groupby(names, types)]
    return _parquet(path, pl.concat(tables), unusable, wanted)


def _read_schema(file: str) -> Mapping[str, pl.DataType]:
    with reading(file):
        return pl.read_parquet_schema(file)


def _have_texts(dtypes: set[pl.DataType]) -> bool:
    """Whether values of these types that are the same number have the same text."""
    return all(
        d.is_integer() or d.is_float() or d.is_decimal() or d in (pl.String, pl.Null)
        for d in dtypes
    )


def _widest(dtypes: set[pl.DataType]) -> pl.DataType | None:
    """The type that holds all values of these without a loss; None where there is none. In a file
    without a single value the column's type is Null, whatever it is in the others."""
    found = dtypes - {pl.Null()} or {pl.Null()}
    if len(found) == 1:
        return found.pop()
    for narrow_to_wide in _WIDENINGS:
        if found <= set(narrow_to_wide):
            return max(found, key=narrow_to_wide.index)
    return None


def _parquet(
    path: Path | str, table: pl.LazyFrame, unusable: dict[str, str], wanted: Collection[str]
) -> Source:
    schema = table.collect_schema()
    unnest = _unnest(path, schema, wanted)

    def n_records() -> int:
        return int(unnest(table).select(pl.len()).collect(engine="streaming").item())

    def with_records() -> pl.LazyFrame:
        # Not what JSON has no form for.
        shown = [
            pl.col(name).bin.encode("hex") if dtype == pl.Binary else pl.col(name)
            for name, dtype in schema.items()
            if name != FILE and not _lacks_json(dtype)
        ]
        row = pl.col(LINE).cast(pl.Int64)
        numbered = table.with_row_index(LINE, offset=1)
        if FILE in schema:
            first = numbered.group_by(FILE).agg(pl.col(LINE).min() - 1)
            before = dict(first.collect(engine="streaming").iter_rows())
            row -= pl.col(FILE).replace_strict(before, return_dtype=pl.Int64)
        record = pl.struct(shown).struct.json_encode()
        for name, dtype in schema.items():
            if dtype.is_float():  # JSON has no NaN, and Polars writes null, which is something else
                key = msgspec.json.encode(name).decode()
                named = record.str.replace(f"{key}:null", f"{key}:NaN", literal=True)
                record = pl.when(pl.col(name).is_nan()).then(named).otherwise(record)
        return unnest(numbered.with_columns(row.alias(LINE), record.alias(RECORD)))

    return Source(unnest(table), False, unusable, with_records, n_records)


def _lacks_json(dtype: pl.DataType) -> bool:
    """Whether Polars cannot write such values as JSON; bytes it can at the top, in hex digits."""

    def holds_bytes(inner: object) -> bool:
        if isinstance(inner, pl.List | pl.Array):
            return holds_bytes(inner.inner)
        if isinstance(inner, pl.Struct):
            return any(holds_bytes(field.dtype) for field in inner.fields)
        return inner in (pl.Binary, pl.Duration, pl.Object)

    return dtype != pl.Binary and holds_bytes(dtype)


def _unnest(
    path: Path | str, schema: pl.Schema, wanted: Collection[str]
) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
    """Adds the wanted columns that are paths into others, such as event.item_id; a path through a
    list of structs makes a row of each of its elements. Raises TrainError for two lists."""
    values: dict[str, pl.Expr] = {}
    lists: dict[str, pl.Expr] = {}
    for name in wanted:
        begin, *rest = name.split(".")
        if name in schema or begin not in schema:
            continue
        at, value, dtype, inside = begin, pl.col(begin), schema[begin], None
        for part in rest:
            if isinstance(dtype, pl.List) and inside is None:
                inside, lists[at] = at, value
                value, dtype = pl.col(_ELEMENT), cast(pl.DataType, dtype.inner)
            fields = dtype.to_schema() if isinstance(dtype, pl.Struct) else {}
            if part not in fields:
                break
            at, value = f"{at}.{part}", value.struct.field(part)
            dtype = cast(pl.DataType, fields[part])
        else:
            values[name] = value
    if len(lists) > 1:
        raise TrainError(
            f"{path}: columns stand in the lists {' and '.join(lists)}; a click's must share one"
        )

    def unnest(table: pl.LazyFrame) -> pl.LazyFrame:
        for elements in lists.values():
            table = table.with_columns(elements.alias(_ELEMENT)).explode(
                _ELEMENT, empty_as_null=True, keep_nulls=True
            )
        return table.with_columns(**values).drop(_ELEMENT, strict=False)

    return unnest


# -- text --------------------------------------------------------------------------------------


class _Text(NamedTuple):
    """One text file."""

    names: list[str]
    unusable: dict[str, str]
    found_out: dict[str, str]
    frames: Callable[[Sequence[str], list[Tally]], Iterator[pl.DataFrame]]
    """Its records in pieces: those of the columns that it has. At the end the list gets what may
    be wrong in them."""


def _scan_texts(
    path: Path, files: Sequence[Path], form: Form, wanted: Collection[str], *, is_many: bool
) -> Source:
    texts = {file: _open_text(file, form, wanted) for file in files}
    names = list(dict.fromkeys(name for text in texts.values() for name in text.names))
    for file, text in texts.items():
        if not set(wanted) & set(text.names) and set(wanted) & set(names):
            raise TrainError(
                f"{file} has none of the columns {', '.join(wanted)}, as other files of the log "
                "do; move it away, or name the log's files by a glob such as '*.csv'"
            )
    found_out = _all_found_out([text.found_out for text in texts.values()])
    n_records, tally = 0, Tally()

    def scan(*further: str) -> pl.LazyFrame:
        schema: dict[str, pl.DataType] = dict.fromkeys([*names, *[FILE] * is_many], pl.String())
        schema[MALFORMED] = pl.Boolean()
        schema |= dict.fromkeys(further, pl.String())
        if LINE in schema:
            schema[LINE] = pl.Int64()

        def read(
            columns: list[str] | None,
            predicate: pl.Expr | None,
            n_rows: int | None,
            _batch_size: int | None,
        ) -> Iterator[pl.DataFrame]:
            nonlocal n_records, tally
            n_read, tallies = 0, list[Tally]()
            for file, text in texts.items():
                own = list(schema) if columns is None else columns
                for frame in text.frames(own, tallies):
                    n_read += len(frame)
                    frame = _with_columns(frame, own, file)
                    shown = frame if predicate is None else frame.filter(predicate)
                    yield shown if n_rows is None else shown.head(n_rows)
                    if n_rows is not None and (n_rows := n_rows - len(shown)) <= 0:
                        return
            n_records, tally = n_read, sum(tallies, Tally())

        return register_io_source(read, schema=schema)

    def all_found_out() -> dict[str, str]:
        spanning = {"records_on_several_lines": str(tally.spanning)} if tally.spanning else {}
        return found_out | spanning

    def doubts() -> list[str]:
        is_given = form.quoting is not None
        found = ((_JOINED, tally.joined), (_QUOTED, 0 if is_given else tally.quoted))
        return [sentence.format(n) for sentence, n in found if n]

    n_bytes = sum(file.stat().st_size * (_PACKS if _is_packed(file) else 1) for file in files)
    return Source(
        scan(),
        True,
        {name: why for text in texts.values() for name, why in text.unusable.items()},
        lambda: scan(LINE, RECORD),
        lambda: n_records,
        all_found_out,
        doubts,
        is_small=n_bytes <= _SMALL_BYTES,
    )


def _all_found_out(files: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What was found out of the files, each of which is read in its own way."""
    counts = Counter(found for file in files for found in file.items())
    found_out: dict[str, str] = {}
    for (key, value), n in counts.items():
        said = value if n == len(files) else f"{value} in {n} of {len(files)} files"
        found_out[key] = f"{found_out[key]}, {said}" if key in found_out else said
    return found_out


def _with_columns(frame: pl.DataFrame, columns: Sequence[str], file: Path) -> pl.DataFrame:
    if not columns:
        return pl.DataFrame(height=len(frame))
    nothing = pl.lit(None, pl.String)
    values = {
        name: name if name in frame.columns else pl.lit(str(file)) if name == FILE else nothing
        for name in columns
    }
    return frame.select(**values)


def _open_text(path: Path, form: Form, wanted: Collection[str]) -> _Text:
    with reading(path), open_bytes(path) as file:
        head = b""
        while len(head) <= HEAD_BYTES and (more := file.read(HEAD_BYTES + 1 - len(head))):
            head += more
    if head.startswith(b"PAR1"):
        raise TrainError(f"{path} is a Parquet file; rename it to end in .parquet")
    is_whole, head = len(head) <= HEAD_BYTES, head[:HEAD_BYTES]
    encoding = find_encoding(head, is_whole, form)
    plain = Dialect(",", "none", encoding, False, False)
    text = b"".join(text_chunks(io.BytesIO(head), plain))
    if text.lstrip()[:1] in (b"{", b"["):
        keys = find_keys(path, text, is_whole, wanted)
        found_out = {"encoding": encoding} if encoding not in ("utf-8", form.encoding) else {}
        frames = partial(_read_json, path, keys, plain)
        return _Text(keys.names, keys.unusable(), found_out, frames)
    found = describe(path, head, is_whole, form, wanted)
    twice = {name for name, count in Counter(found.names).items() if count > 1}
    return _Text(
        [name for name in found.names if name not in twice],
        dict.fromkeys(twice, "stands in the header twice; rename one of them"),
        found.found_out,
        partial(_read_text, path, found),
    )


def _read_json(
    path: Path, keys: Keys, dialect: Dialect, columns: Sequence[str], _tallies: list[Tally]
) -> Iterator[pl.DataFrame]:
    own = [name for name in columns if name in keys.names]
    with reading(path), open_bytes(path) as file:
        chunks = text_chunks(file, dialect)
        yield from json_frames(chunks, keys, own, with_record=LINE in columns or RECORD in columns)


def _read_text(
    path: Path, found: Described, columns: Sequence[str], tallies: list[Tally]
) -> Iterator[pl.DataFrame]:
    number = {name: n for n, name in enumerate(found.names)}
    own = {str(number[name]): name for name in columns if name in number}
    with reading(path), open_bytes(path) as file:
        reader = Reader(text_chunks(file, found.dialect), found.dialect, len(found.names))
        reader.skip(found.n_skipped)
        if found.dialect.has_header:
            reader.first()
        with_record = LINE in columns or RECORD in columns
        for frame in reader.frames([int(n) for n in own], with_record=with_record):
            yield frame.rename(own)
        tallies.append(reader.tally)
