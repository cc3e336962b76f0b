"""A click log as a lazy table: of a file, a folder or glob of Parquet files, or a URL.

Of Parquet, columns that nobody asks for are never decoded. Text files are small by comparison and
are read at once.
"""

import csv
import glob
import gzip
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from train.command import TrainError

MALFORMED = "\0malformed"
"""Column of a text log with such rows: whether a row does not fit the header."""
FILE = "\0file"
"""Column of a log of several files: the row's file."""
_PARQUET = (".parquet", ".pq")
_AT_ONCE = 16
"""Files whose schemas are read at the same time: a remote store takes some 50 ms for each."""
_MOST_LINES = 100
"""Of a quoted field: a stray quote would otherwise make one of the rest of the log."""
_WIDENINGS = (
    (pl.Int8(), pl.Int16(), pl.Int32(), pl.Int64()),
    (pl.UInt8(), pl.UInt16(), pl.UInt32(), pl.UInt64()),
    (pl.Float32(), pl.Float64()),
)


class Source(NamedTuple):
    """The rows of a log, unchecked; of a text file all columns are text."""

    table: pl.LazyFrame
    """May have the columns MALFORMED and FILE besides the log's own."""
    is_text: bool
    """Bytes that are not UTF-8 were replaced by U+FFFD."""
    conflicts: dict[str, str]
    """Columns left out because their types in different files have none in common, with those."""


def open_log(path: str | Path) -> Source:
    """The log at ``path``, whose files are read when the table is collected.

    A .parquet, .csv or .tsv file (text also .gz); a folder (all .parquet files below it) or a
    glob of Parquet files, in order of their names; a URL (s3://, gs://, az://, https://, file://)
    of such a file, glob or, ending in a slash, folder. Files of a folder whose names begin with a
    dot or underscore are skipped. A column that a file lacks is null there.
    Raises TrainError.
    """
    if "://" in str(path):
        with reading(path):
            return _scan_url(str(path))
    path = Path(path)
    with reading(path):
        if path.is_dir() or (any(c in str(path) for c in "*?[") and not path.exists()):
            return _scan_files(_files(path))
        name = path.name.lower().removesuffix(".gz")
        if name.endswith((".csv", ".tsv")):
            separator = "," if name.endswith(".csv") else "\t"
            return Source(_read_text(path, separator).lazy(), is_text=True, conflicts={})
        if path.name.lower().endswith(_PARQUET):
            return Source(pl.scan_parquet(path, glob=False), is_text=False, conflicts={})
    raise TrainError(f"{path}: a click log must be .parquet, .csv, .tsv, .csv.gz or .tsv.gz")


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn what opening or collecting the log raises into a TrainError of one sentence."""
    try:
        yield
    except pl.exceptions.NoDataError:
        raise TrainError(f"{path} is empty: it has no header") from None
    except FileNotFoundError:
        raise TrainError(f"{path} does not exist") from None
    except (OSError, EOFError, csv.Error, pl.exceptions.PolarsError) as error:
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


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = [
            file
            for file in path.rglob("*")
            if not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        ]
    else:
        found = [Path(file) for file in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - ** too
    files = sorted(file for file in found if file.name.lower().endswith(_PARQUET))
    if not files:
        raise TrainError(f"{path} contains no .parquet file")
    return files


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
    return Source(table, is_text=False, conflicts=conflicts)


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


def _read_text(path: Path, separator: str) -> pl.DataFrame:
    with path.open("rb") as file:
        magic = file.read(2)
    if path.suffix.lower() == ".gz" and magic and magic != b"\x1f\x8b":
        raise TrainError(f"{path} is not a gzip file, though its name ends in .gz")
    quote = '"' if separator == "," else None  # tab-separated logs have no quotes
    read = partial(
        pl.read_csv,
        path,
        separator=separator,
        quote_char=quote,
        infer_schema=False,
        encoding="utf8-lossy",
    )
    try:
        _check_header(path, [name or "" for name in read(has_header=False, n_rows=1).row(0)])
        return read()
    except pl.exceptions.ComputeError:
        # Polars refuses a file in which one row has more fields than the header or a stray quote.
        # Reading it row by row finds such rows, many times slower.
        return _read_ragged_text(path, separator)


def _check_header(path: Path, header: Sequence[str]) -> None:
    """Polars would silently rename the second of two columns."""
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise TrainError(f"{path} has the column {twice[0]!r} twice; rename one of them")


def _read_ragged_text(path: Path, separator: str) -> pl.DataFrame:
    opened: Callable[..., Any] = gzip.open if path.suffix.lower() == ".gz" else open
    quoting = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
    dialect: dict[str, Any] = {"delimiter": separator, "quoting": quoting}
    with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
        header = next(csv.reader(file, **dialect))
        lines = list(file)
    _check_header(path, header)
    last = len(header) - 1
    rows: list[list[str | None]] = []
    malformed: list[bool] = []
    for row, is_quoted_well in _records(lines, dialect, len(header)):
        fields = [*row[:last], separator.join(row[last:])]  # surplus fields stay visible
        rows.append([field or None for field in fields] + [None] * (last + 1 - len(fields)))
        malformed.append(len(row) > len(header) or not is_quoted_well)
    table = pl.DataFrame(rows, schema=dict.fromkeys(header, pl.String), orient="row")
    return table.with_columns(pl.Series(MALFORMED, malformed, dtype=pl.Boolean))


def _records(
    lines: Sequence[str], dialect: dict[str, Any], n_fields: int
) -> Iterator[tuple[list[str], bool]]:
    """Every record's fields, and whether its quotes are closed.

    Where they are not, the record is its first line alone, split as if it had no quotes, so that a
    stray quote spoils no other line.
    """
    row = 0
    while row < len(lines):
        ahead = lines[row : row + _MOST_LINES]
        reader = csv.reader(ahead, **dialect, strict=True)
        try:
            record, n_lines = next(reader), reader.line_num
        except csv.Error:
            record, n_lines = [], 0
        if n_lines == 1 or (n_lines > 1 and len(record) == n_fields):
            yield record, True
            row += n_lines
        else:
            yield lines[row].rstrip("\r\n").split(dialect["delimiter"]), False
            row += 1
