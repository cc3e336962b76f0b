"""A click log as a lazy table: of a file, a folder or glob of files, or a URL.

Of Parquet, columns that nobody asks for are never decoded. Text is read in pieces, each time that
the table is collected.
"""

import glob
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import polars as pl
import structlog
from polars.io.plugins import register_io_source

from train.command import TrainError
from train.data.dialect import FOUND_OUT, Described, Form, describe
from train.data.text import (
    HEAD_BYTES,
    LINE,
    MALFORMED,
    RECORD,
    Reader,
    open_bytes,
    text_chunks,
)

FILE = "\0file"
"""Column of a log of several files: the row's file."""
_PARQUET = (".parquet", ".pq")
_TEXT = (".csv", ".tsv", ".tab", ".txt", ".dat", ".log", "")
_PACKED = (".gz", ".zst")
_AT_ONCE = 16
"""Files whose schemas are read at the same time: a remote store takes some 50 ms for each."""
_LAKES = {
    "_delta_log": "Delta Lake",
    "metadata/*.metadata.json": "Iceberg",
    ".hoodie": "Hudi",
}
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
    conflicts: dict[str, str]
    """Columns left out because their types in different files have none in common, with those."""
    with_records: Callable[[], pl.LazyFrame]
    """The table with LINE and RECORD, which take longer to read."""
    n_records: Callable[[], int]
    """Records in the files; of text, those that the last whole reading of the table found."""


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
            return _scan_url(str(path))
    path = Path(path)
    with reading(path):
        if path.is_dir() or (any(c in str(path) for c in "*?[") and not path.exists()):
            _refuse_lake(path)
            files = _files(path)
            if _kind(files[0]) == "parquet":
                return _scan_files(files)
            return _scan_texts(files, form, wanted, is_many=True)
        if _kind(path) == "parquet":
            _check_is_parquet(path)
            return _parquet(pl.scan_parquet(path, glob=False), {})
        return _scan_texts([path], form, wanted, is_many=False)


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


def _scan_url(url: str) -> Source:
    if not url.lower().endswith(_PARQUET) and not url.endswith("/"):
        raise TrainError(f"{url}: expected a URL of .parquet files, or of a folder that ends in /")
    if not url.endswith("/") and not any(c in url for c in "*?["):
        return _scan_files([url])
    # Only Polars can list files there. It skips empty files, which object stores have for folders.
    listed = pl.scan_parquet(
        url + "**/*.parquet" if url.endswith("/") else url,
        include_file_paths=FILE,
        missing_columns="insert",
        extra_columns="ignore",
        hive_partitioning=False,
        hidden_file_prefix=(".", "_"),
    )
    return _scan_files(sorted(listed.select(FILE).unique().collect()[FILE]))


def _kind(path: Path) -> str:
    """parquet or text, by the file's name; "" for any other."""
    name = path.name.lower()
    if name.endswith(_PARQUET):
        return "parquet"
    if path.suffix.lower() in _PACKED:
        name = path.stem.lower()
    return "text" if Path(name).suffix in _TEXT else ""


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
    files = sorted(file for file in found if _kind(file))
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


def _parquet(table: pl.LazyFrame, conflicts: dict[str, str]) -> Source:
    def n_records() -> int:
        return int(table.select(pl.len()).collect(engine="streaming").item())

    def with_records() -> pl.LazyFrame:
        schema = table.collect_schema()
        # What JSON has no form for.
        shown = [
            pl.col(name).bin.encode("hex") if dtype == pl.Binary else pl.col(name)
            for name, dtype in schema.items()
            if name != FILE and dtype not in (pl.Duration, pl.Object)
        ]
        counted = table.with_row_index("\0index", offset=1)
        if FILE in schema:
            first = counted.group_by(FILE).agg(pl.col("\0index").min().alias("\0first"))
            before = dict(first.collect(engine="streaming").iter_rows())
            offset = pl.col(FILE).replace_strict(before, return_dtype=pl.Int64) - 1
        else:
            offset = pl.lit(0, pl.Int64)
        line = (pl.col("\0index").cast(pl.Int64) - offset).alias(LINE)
        return counted.with_columns(line, pl.struct(shown).struct.json_encode().alias(RECORD)).drop(
            "\0index"
        )

    return Source(table, False, conflicts, with_records, n_records)


def _scan_files(files: Iterable[Path | str]) -> Source:
    """The files as one table with every column that any of them has."""
    names = [str(file) for file in files]
    found: dict[str, set[pl.DataType]] = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for columns in pool.map(_read_schema, names):
            for name, dtype in columns.items():
                found.setdefault(name, set()).add(dtype)
    widest = {name: _widest(dtypes) for name, dtypes in found.items()}
    conflicts = {
        name: " and ".join(sorted(map(str, found[name])))
        for name, dtype in widest.items()
        if dtype is None
    }
    table = pl.scan_parquet(
        names,
        glob=False,
        schema={name: dtype for name, dtype in widest.items() if dtype is not None},
        cast_options=pl.ScanCastOptions(integer_cast="upcast", float_cast="upcast"),
        missing_columns="insert",
        extra_columns="ignore",
        include_file_paths=FILE,
    )
    return _parquet(table, conflicts)


def _read_schema(file: str) -> Mapping[str, pl.DataType]:
    with reading(file):
        return pl.read_parquet_schema(file)


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


# -- text --------------------------------------------------------------------------------------


def _scan_texts(
    files: Sequence[Path], form: Form, wanted: Collection[str], *, is_many: bool
) -> Source:
    described = {file: _describe(file, form, wanted) for file in files}
    names = list(dict.fromkeys(name for found in described.values() for name in found.names))
    if is_many and wanted:
        for file, found in described.items():
            if not set(wanted) & set(found.names) and set(wanted) & set(names):
                raise TrainError(
                    f"{file} has none of the columns {', '.join(wanted)}, as other files of the "
                    "log do; move it away, or name the log's files by a glob such as '*.csv'"
                )
    said = {key: value for found in described.values() for key, value in found.found_out.items()}
    if said:
        log.info("log_format_found", clicks=str(files[0].parent if is_many else files[0]), **said)
    n_records = 0

    def scan(*further: str) -> pl.LazyFrame:
        schema: dict[str, pl.DataType] = dict.fromkeys([*names, *[FILE] * is_many], pl.String())
        schema[MALFORMED] = pl.Boolean()
        schema |= {name: pl.Int64() if name == LINE else pl.String() for name in further}

        def read(
            columns: list[str] | None,
            predicate: pl.Expr | None,
            n_rows: int | None,
            _batch_size: int | None,
        ) -> Iterator[pl.DataFrame]:
            nonlocal n_records
            n_read = 0
            for file, found in described.items():
                for frame in _read_text(file, found, list(schema) if columns is None else columns):
                    n_read += len(frame)
                    shown = frame if predicate is None else frame.filter(predicate)
                    yield shown if n_rows is None else shown.head(n_rows)
                    if n_rows is not None and (n_rows := n_rows - len(shown)) <= 0:
                        return
            n_records = n_read

        return register_io_source(read, schema=schema)

    return Source(scan(), True, {}, lambda: scan(LINE, RECORD), lambda: n_records)


def _describe(path: Path, form: Form, wanted: Collection[str]) -> Described:
    with reading(path), open_bytes(path) as file:
        head = b""
        while len(head) <= HEAD_BYTES and (more := file.read(HEAD_BYTES + 1 - len(head))):
            head += more
    if head.startswith(b"PAR1"):
        raise TrainError(f"{path} is a Parquet file; rename it to end in .parquet")
    if head.lstrip()[:1] in (b"{", b"["):
        raise TrainError(f"{path} is JSON; expected Parquet or separated values")
    return describe(path, head[:HEAD_BYTES], len(head) <= HEAD_BYTES, form, wanted)


def _read_text(path: Path, found: Described, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    number = {name: n for n, name in enumerate(found.names)}
    wanted = [number[name] for name in columns if name in number]
    with reading(path), open_bytes(path) as file:
        reader = Reader(text_chunks(file, found.dialect), found.dialect, len(found.names))
        if found.dialect.has_header:
            reader.first()
        for frame in reader.frames(wanted, with_record=RECORD in columns or LINE in columns):
            own = [
                pl.col(str(number[name])).alias(name)
                if name in number
                else pl.lit(str(path)).alias(name)
                if name == FILE
                else pl.col(name)
                if name in (MALFORMED, LINE, RECORD)
                else pl.lit(None, pl.String).alias(name)
                for name in columns
            ]
            yield frame.select(own) if own else pl.DataFrame(height=len(frame))
