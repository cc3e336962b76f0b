"""Where a log may lie, and what of it is read."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest
from structlog.testing import capture_logs

from train.command import TrainError
from train.data.clicks import read_clicks, read_rows
from train.data.columns import Columns
from train.data.ids import Reason
from train.data.source import open_log


def frame(first: int, n: int = 3, **columns: object) -> pl.DataFrame:
    """Clicks ``first`` and on, of one session each."""
    numbers = range(first, first + n)
    return pl.DataFrame(
        {
            "session_id": [f"s{i}" for i in numbers],
            "item_id": [f"i{i}" for i in numbers],
            "timestamp_ms": list(numbers),
        }
    ).with_columns(**{name: pl.lit(value) for name, value in columns.items()})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six clicks in two files, the second one in a folder of its own and with a column more."""
    logs = tmp_path / "logs"
    (logs / "day=2").mkdir(parents=True)
    frame(0).write_parquet(logs / "a.parquet")
    frame(3, page="home").write_parquet(logs / "day=2" / "b.parquet")
    (logs / "_SUCCESS").touch()
    (logs / "collect.json").write_text("{}")
    (logs / ".c.parquet").write_bytes(b"half of a")
    return logs


@pytest.mark.parametrize("log", ["{}", "file://{}/", "file://{}/**/*.parquet"])
def test_a_folder_is_one_log_with_every_column_that_a_file_has(folder: Path, log: str) -> None:
    clicks = read_clicks(log.format(folder)).clicks
    assert clicks["timestamp_ms"].to_list() == list(range(6))
    assert clicks["page"].to_list() == [None] * 3 + ["home"] * 3
    assert clicks.columns == ["session_id", "item_id", "timestamp_ms", "page"]


@pytest.mark.parametrize(
    ("pattern", "found"), [("*.parquet", 3), ("**/*.parquet", 6), ("day=[12]/*", 3)]
)
def test_a_glob_is_the_files_it_names(folder: Path, pattern: str, found: int) -> None:
    assert len(read_clicks(folder / pattern).clicks) == found
    assert len(read_clicks(f"{folder}/{pattern}").clicks) == found


def test_a_url_is_a_file_a_glob_or_with_a_slash_a_folder(folder: Path) -> None:
    url = f"file://{folder}"
    assert len(read_clicks(f"{url}/a.parquet").clicks) == 3
    assert len(read_clicks(f"{url}/*.parquet").clicks) == 3
    assert len(read_clicks(f"{url}/").clicks) == 6
    with pytest.raises(TrainError, match="of a folder that ends in /"):
        read_clicks(url)
    with pytest.raises(TrainError, match=r"file://.*cannot be read|does not exist"):
        read_clicks(f"{url}/absent.parquet")


class Ranges(SimpleHTTPRequestHandler):
    """Serves a folder, parts of files too, as object stores do."""

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        first, end = 0, len(data)
        if wanted := self.headers["Range"]:
            begin, _, last = wanted.removeprefix("bytes=").partition("-")
            first = int(begin) if begin else max(0, end - int(last))
            end = min(end, int(last) + 1) if begin and last else end
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(end - first))
        self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[first:end])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_log_is_read_over_http_and_its_bad_rows_written_where_one_stands(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame(0).with_columns(item_id=pl.Series(["a", "", "b"])).write_parquet(folder / "bad.parquet")
    monkeypatch.chdir(folder)
    with served(folder) as url:
        found = read_clicks(f"{url}/bad.parquet")
    assert found.clicks["item_id"].to_list() == ["a", "b"]
    assert found.rejected == {Reason.BAD_ITEM_ID: 1}
    assert found.rejected_path == Path("bad.parquet.rejected.csv")


def test_bad_rows_of_many_files_are_counted_on_and_name_their_file(folder: Path) -> None:
    frame(6).with_columns(timestamp_ms=pl.Series([6, -1, 8])).write_parquet(folder / "z.parquet")
    found = read_clicks(folder)
    assert found.rejected == {Reason.BAD_TIMESTAMP: 1}
    assert found.rejected_path == folder.parent / "logs.rejected.csv"
    written = pl.read_csv(found.rejected_path)
    assert written["line"].to_list() == [2]
    assert json.loads(written["record"][0]) == {
        **{"session_id": "s7", "item_id": "i7", "timestamp_ms": -1, "page": None}
    }
    assert written["file"].to_list() == [str(folder / "z.parquet")]
    assert read_clicks(folder / "*.parquet").rejected_path == folder.parent / "logs.rejected.csv"


def test_only_the_wanted_columns_are_read(folder: Path) -> None:
    everything = frame(0, page="home", unread=1).with_columns(lists=pl.lit([1]))
    everything.write_parquet(folder / "a.parquet")
    found = read_rows(folder, Columns(), keep=("page", "absent"))
    assert found.good.columns == ["session_id", "item_id", "timestamp_ms", "page"]
    plan = open_log(folder).table.select("session_id", "page").explain()
    assert "PROJECT 2/" in plan  # Polars decodes no other column


@pytest.mark.parametrize("keep", [None, ("page",)])
def test_files_may_disagree_about_a_column_that_nobody_needs(
    folder: Path, keep: tuple[str, ...] | None
) -> None:
    frame(6, page=True).write_parquet(folder / "z.parquet")
    assert read_clicks(folder, keep=keep).clicks.columns == [*frame(0).columns]
    frame(9).with_columns(item_id=pl.lit(True)).write_parquet(folder / "y.parquet")
    with pytest.raises(TrainError, match="'item_id' has types Boolean and String in its files; "):
        read_clicks(folder, keep=keep)


def test_whole_numbers_are_the_same_ids_whatever_type_a_file_has_for_them(tmp_path: Path) -> None:
    """As pandas writes integers of a day in which one is missing."""
    ids = [[7, 2**60], [7.0, None], ["7", "x"], [None, None], [8, 9]]
    for day, values in enumerate(ids):
        table = pl.DataFrame({"item_id": values}, strict=False).with_columns(
            session_id=pl.lit(f"s{day}"), timestamp_ms=pl.lit(day)
        )
        table.write_parquet(tmp_path / f"{day}.parquet")
    found = read_clicks(tmp_path)
    assert found.clicks["item_id"].to_list() == ["7", str(2**60), "7", "7", "x", "8", "9"]
    assert found.rejected == {Reason.BAD_ITEM_ID: 3}
    assert found.rejected_path is not None
    written = pl.read_csv(found.rejected_path)
    assert [Path(file).stem for file in written["file"]] == ["1", "3", "3"]
    assert written["line"].to_list() == [2, 1, 2]
    wide = pl.DataFrame({"item_id": [2**63], "session_id": "s", "timestamp_ms": 9})
    wide.with_columns(pl.col("item_id").cast(pl.UInt64)).write_parquet(tmp_path / "5.parquet")
    assert read_clicks(tmp_path).clicks["item_id"][-1] == str(2**63)


@pytest.mark.parametrize("log", ["{}", "file://{}/", "file://{}/*.parquet"])
def test_files_may_write_a_column_narrower_or_without_a_value(tmp_path: Path, log: str) -> None:
    """As a day's file of pandas does whose numbers are small or whose column is empty."""
    narrow = {"item_id": pl.Series([1, 2], dtype=pl.Int32), "page": pl.Series([None, None])}
    frame(0, 2).with_columns(**narrow, dwell=pl.Series([1, 2.5], dtype=pl.Float32)).write_parquet(
        tmp_path / "a.parquet"
    )
    wide = frame(2, 1).with_columns(item_id=pl.Series([2**40]), page=pl.lit("p"), dwell=pl.lit(0.1))
    wide.write_parquet(tmp_path / "b.parquet")
    clicks = read_clicks(log.format(tmp_path)).clicks
    assert clicks["item_id"].to_list() == ["1", "2", str(2**40)]
    assert clicks["page"].to_list() == [None, None, "p"]
    assert clicks["dwell"].to_list() == [1, 2.5, 0.1]


def test_a_rejected_row_shows_nan_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    ids = pl.Series([float("nan"), None, 1.5])
    table = pl.DataFrame({"session_id": "s", 'the "id"': ids, "timestamp_ms": [1, 2, -3]})
    table.write_parquet(path)
    with pytest.raises(TrainError, match="no good click"):
        read_clicks(path, Columns(item='the "id"'))
    written = pl.read_csv(f"{path}.rejected.csv")["record"]
    assert ["NaN" in record for record in written] == [True, False, False]
    items = [json.loads(record)['the "id"'] for record in written]
    assert str(items[0]) == "nan" and items[1:] == [None, 1.5]


def test_a_replacement_character_is_bad_in_text_and_good_in_parquet(tmp_path: Path) -> None:
    """In a text file it stands for bytes that are no UTF-8; Parquet holds none."""
    path = tmp_path / "log.parquet"
    frame(0, 1).with_columns(item_id=pl.lit("caf\ufffd")).write_parquet(path)
    assert read_clicks(path).clicks["item_id"].to_list() == ["caf\ufffd"]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("log.tsv.gz", b"session_id\titem_id\n", "is not a gzip file, though its name ends in .gz"),
        ("log.csv", b"session_id,item_id,timestamp_ms,item_id\n1,2,3,4\n", "'item_id' stands in"),
    ],
)
def test_a_text_file_with_a_wrong_name_or_header_is_one_sentence(
    tmp_path: Path, name: str, data: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TrainError, match=sentence) as raised:
        read_clicks(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_a_column_of_a_reserved_name_is_left_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    frame(0, sid="t").write_csv(tmp_path / "log.csv")
    columns = Columns(session="sid")
    with capture_logs() as logs:
        clicks = read_clicks(tmp_path / "log.csv", columns).clicks
    assert clicks["session_id"].to_list() == ["t"] * 3
    assert clicks.columns == ["session_id", "item_id", "timestamp_ms"]
    assert [line.get("left_out") for line in logs if line["event"] == "log_format_found"] == [
        "session_id"
    ]
    with pytest.raises(TrainError, match="column 'session_id' has a reserved name; rename it"):
        read_clicks(tmp_path / "log.csv", columns, keep=["session_id"])


def test_a_folder_without_parquet_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"contains no \.parquet file"):
        read_clicks(tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(TrainError, match=r"broken\.parquet cannot be read"):
        read_clicks(tmp_path)


def test_a_gzip_file_with_a_ragged_row_is_read_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(b"session_id,item_id,timestamp_ms\ns,a,1\ns,b,2,3\n"))
    found = read_clicks(path)
    assert (len(found.clicks), found.rejected) == (1, {Reason.BAD_FIELD: 1})


def test_bad_rows_are_written_as_json_without_what_that_has_no_form_for(tmp_path: Path) -> None:
    log = pl.DataFrame(
        {
            "session_id": ["s", None],
            "item_id": ["a", "b"],
            "timestamp_ms": [1, 2],
            "dwell": [timedelta(seconds=1)] * 2,
            "raw": [b"x"] * 2,
            "page": ["p", "q"],
        }
    )
    log.write_parquet(tmp_path / "log.parquet")
    found = read_clicks(tmp_path / "log.parquet")
    assert found.rejected_path is not None
    written = pl.read_csv(found.rejected_path)
    assert json.loads(written["record"][0]) == {
        **{"session_id": None, "item_id": "b", "timestamp_ms": 2, "raw": "78", "page": "q"}
    }
