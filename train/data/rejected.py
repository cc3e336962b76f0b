"""The records of a log that are no clicks, written out with their line and reason."""

import os
from pathlib import Path

import polars as pl

from train.command import TrainError
from train.data.ids import REASON, Reason
from train.data.source import FILE, REJECTED
from train.data.text import LINE, RECORD

SHOWN_OF_BAD_LOG = 100
"""Records of each reason that are written of a log without a good click: enough to see what is
wrong with it, and no copy of it."""

ADVICE = {
    Reason.BAD_FIELD: "those records have more fields than the header, or a quote that is not "
    "closed: if quotes stand behind backslashes set --columns quoting=backslash, if no field is "
    "quoted quoting=none",
    Reason.NOT_UTF8: "if the file is of Windows set --columns encoding=cp1252",
}
"""Of a text log: what else such records may be."""


def write_rejected(judged: pl.LazyFrame, path: Path, *, reasons: list[Reason] | None) -> None:
    """Write the rows with a REASON as a CSV file: file (of a log of several), line, reason and the
    record as it stands in the log. With ``reasons``, only the first of each of these.
    Raises TrainError if the file cannot be written."""
    bad = judged.filter(pl.col(REASON).is_not_null())
    if reasons is not None:
        bad = pl.concat(bad.filter(pl.col(REASON) == r).head(SHOWN_OF_BAD_LOG) for r in reasons)
    named = {FILE: "file", LINE: "line", REASON: "reason", RECORD: "record"}
    if FILE not in judged.collect_schema():
        del named[FILE]
    try:
        with path.open("wb") as file:
            shown = bad.select(pl.col(name).alias(new) for name, new in named.items())
            shown.sink_csv(file, engine="streaming")
    except OSError as error:
        problem = f"cannot write the log's bad rows to {path}: {error.strerror}"
        raise TrainError(problem) from error


def rejected_path(path: str | Path) -> Path:
    """The log's name + .rejected.csv in its folder, or in the working directory for a URL and where
    that folder is not writable. A glob has the name of the folder that it begins in."""
    parts = [part for part in Path(str(path)).parts if not any(c in part for c in "*?[")]
    whole = Path(*parts)
    if whole.name in ("", ".."):  # the working directory, or one that is named from it
        whole = whole.resolve()
    away = "://" in str(path) or not os.access(whole.parent, os.W_OK)
    return Path("" if away else whole.parent, whole.name + REJECTED)
