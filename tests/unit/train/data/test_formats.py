"""Text as it comes: its separator, header, encoding, compression, folders, JSON; and lakes."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from structlog.testing import capture_logs

from train.command import TrainError
from train.data.clicks import read_clicks
from train.data.columns import Columns
from train.data.filters import EventTypes
from train.data.ids import Reason
from train.data.rejected import SHOWN_OF_BAD_LOG

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

HEADER = "session_id,item_id,timestamp_ms\n"
PLAIN = HEADER + "s,a,1\ns,b,2\n"
CLICKS = [("s", "a", 1), ("s", "b", 2)]
Row = tuple[str, str, int]


def read(path: Path, **columns: object) -> list[Row]:
    clicks = read_clicks(path, Columns.model_validate(columns)).clicks
    return clicks.select("session_id", "item_id", "timestamp_ms").rows()


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("log.csv", PLAIN.replace(",", ";"), {"separator": ";"}),
        ("log.csv", PLAIN.replace(",", "\t"), {"separator": "tab"}),
        ("log.tsv", PLAIN.replace(",", "\t"), {}),
        ("log.tsv", PLAIN, {"separator": ","}),
        ("part-00000", PLAIN.replace(",", "|"), {"separator": "|"}),
        ("log.csv", PLAIN.replace("a,", '"a;b;c;d",').replace("b,", '"b",'), {}),
        ("log.csv", PLAIN.replace("\n", "\r"), {"line_ends": "cr"}),
        ("log.csv", PLAIN.replace("\n", "\r\n"), {}),
        ("log.csv", "\ufeff" + PLAIN, {}),
        ("log.csv", " session_id, item_id ,timestamp_ms\ns,a,1\n", {}),
    ],
)
def test_the_separator_is_found_out_and_said(
    tmp_path: Path, name: str, text: str, found: dict[str, str]
) -> None:
    (tmp_path / name).write_bytes(text.encode())
    with capture_logs() as logs:
        rows = read(tmp_path / name)
    assert [row[2] for row in rows] == [1, 2][: len(rows)]
    said = [line for line in logs if line["event"] == "log_format_found"]
    assert [
        {k: v for k, v in line.items() if k not in ("event", "clicks", "log_level")}
        for line in said
    ] == ([found] if found else [])


def test_a_separator_that_is_given_is_taken(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(PLAIN.replace(",", "^"))
    assert read(tmp_path / "log", separator="^") == CLICKS
    for said, separator in ("\\t", "\t"), ("tab", "\t"), ("comma", ","), (";", ";"), (None, None):
        assert Columns(separator=said).form().separator == separator
    for wrong in (",,", "\n", "ä", '"', ""):
        with pytest.raises(ValidationError, match="one ASCII character"):
            Columns(separator=wrong)


def test_a_file_without_a_header_has_its_columns_by_position(tmp_path: Path) -> None:
    path = tmp_path / "clicks.dat"
    path.write_text("7,2,s,a\n8,1,s,b\n")
    by_position = {"session": "3", "item": "4", "time": "2"}
    assert read(path, **by_position) == [("s", "b", 1), ("s", "a", 2)]
    assert read(path, **by_position, header=False) == [("s", "b", 1), ("s", "a", 2)]
    path.write_text("0,1,2,3\n7,2,s,a\n")
    assert read(path, session="2", item="3", time="1") == [("s", "a", 2)]
    path.write_text("7,2,s,a\n8,1,s,b\n")
    with pytest.raises(TrainError, match=r"has no header: its first line is '7,2,s,a'; name its"):
        read(path)
    path.write_text("s,t,i,u\nx,2,s,a\n")
    with pytest.raises(TrainError, match="has no column 'session_id'; its columns are s, t, i, u"):
        read(path)
    assert read(path, session="i", item="u", time="t") == [("s", "a", 2)]


def test_a_column_that_is_there_twice_is_refused_where_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("id,session_id,item_id,id,timestamp_ms\n7,s,a,8,1\n7,s,b,9,2\n")
    assert read(path) == CLICKS
    assert "id" not in read_clicks(path).clicks.columns
    with pytest.raises(TrainError, match=r"log\.csv: column 'id' stands in the header twice; ren"):
        read(path, item="id")
    path.write_text("session_id,item_id,item_id,timestamp_ms\ns,a,b,1\n")
    with pytest.raises(TrainError, match="column 'item_id' stands in the header twice"):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("unpacked", [True, False])
def test_the_encoding_is_found_out(tmp_path: Path, encoding: str, unpacked: bool) -> None:
    data = (PLAIN + "é,ü,3\n").encode(encoding)
    path = tmp_path / ("log.csv" if unpacked else "log.csv.gz")
    path.write_bytes(data if unpacked else gzip.compress(data))
    assert read(path) == [*CLICKS, ("é", "ü", 3)]


def test_an_encoding_that_is_given_is_taken_and_what_it_cannot_read_is_rejected(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes((PLAIN + "é,ü,3\n").encode("cp1251", errors="replace"))
    path.write_bytes("session_id,item_id,timestamp_ms\nж,я,3\n".encode("cp1251"))
    assert read(path, encoding="cp1251") == [("ж", "я", 3)]
    path.write_bytes(PLAIN.encode("utf-16-le") + b"\x00\xd8,\0x\0,\x003\0\n\0")
    found = read_clicks(path)
    assert found.rejected == {Reason.NOT_UTF8: 1}
    with pytest.raises(ValidationError, match="an encoding that Python knows"):
        Columns(encoding="base64")
    assert Columns(encoding="Latin1").form().encoding == "iso8859-1"


def test_bytes_of_two_encodings_are_rejected_where_they_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(PLAIN.encode() + "é,a,3\n".encode() + "é,a,3\n".encode("cp1252"))
    found = read_clicks(path)
    assert (len(found.clicks), found.rejected) == (3, {Reason.NOT_UTF8: 1})


def test_backslash_quoting_is_found_out(tmp_path: Path) -> None:
    """As Spark writes it: by RFC 4180 half of these would be lost in a quoted field."""
    path = tmp_path / "log.csv"
    lines = ['s,"a \\"quoted\\" one",1', "s,b,2", 's,"c, \\"d\\"",3', "s,e,4"]
    path.write_text(HEADER + "\n".join(lines) + "\n")
    with capture_logs() as logs:
        rows = read(path)
    assert rows == [("s", 'a "quoted" one', 1), ("s", "b", 2), ("s", 'c, "d"', 3), ("s", "e", 4)]
    assert [line["quoting"] for line in logs if "quoting" in line] == ["backslash"]
    by_rfc = read_clicks(path, Columns(quoting="rfc"))
    assert (len(by_rfc.clicks), by_rfc.rejected) == (2, {Reason.BAD_FIELD: 2})


def test_each_file_of_a_folder_is_read_in_its_own_way(tmp_path: Path) -> None:
    """The second would be read wrongly with backslashes, the third without, or with commas."""
    texts = {
        "a.csv": PLAIN,
        "b.csv": HEADER + 's,"a\\",1\ns,"b\\",2\n',
        "c.csv": HEADER + 's,"c \\"d\\"",3\n',
        "d.csv": PLAIN.replace(",", ";"),
        "e.csv": PLAIN.replace(",", "|"),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    with capture_logs() as logs:
        rows = read(tmp_path)
    assert sorted(rows) == sorted(
        [*CLICKS * 3, ("s", "a\\", 1), ("s", "b\\", 2), ("s", 'c "d"', 3)]
    )
    (said,) = (line for line in logs if line["event"] == "log_format_found")
    assert said["quoting"] == "backslash in 1 of 5 files"
    assert said["separator"] == "; in 1 of 5 files, | in 1 of 5 files"


def test_tab_separated_text_has_quotes_only_where_all_of_it_does(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    text = PLAIN.replace(",", "\t")
    path.write_text(text + 's\t"c\t3\n' + 's\t"d"\t4\n')
    assert read(path)[2:] == [("s", '"c', 3), ("s", '"d"', 4)]
    path.write_text("".join(f'"{line}"\n'.replace("\t", '"\t"') for line in text.splitlines()))
    assert read(path) == CLICKS


@pytest.mark.parametrize(
    ("rows", "items"),
    [
        # As csv.writer writes excel-tab: only what needs it is quoted.
        (['s\t"2"" pipe"\t3', "s\tb\t4"], ['2" pipe', "b"]),
        (['s\t"2\tpipe"\t3', "s\tb\t4"], [None, "b"]),  # no id: a control character
        (['s\tb\t3\t"said ""hm"""', 's\tc\t4\t"two\nlines"'], ["b", "c"]),
    ],
)
def test_tab_separated_text_may_be_quoted_where_it_needs_it(
    tmp_path: Path, rows: list[str], items: list[str | None]
) -> None:
    path = tmp_path / "log.tsv"
    header = HEADER.strip().replace(",", "\t") + "\tnote" * (rows[0].count("\t") > 2)
    path.write_text("\n".join([header, *rows]) + "\n")
    with capture_logs() as logs:
        found = read_clicks(path)
    assert found.clicks["item_id"].to_list() == [item for item in items if item]
    assert sum(found.rejected.values()) == items.count(None)
    assert {"quoting": "rfc"} in [{"quoting": line.get("quoting")} for line in logs]
    assert not [line for line in logs if line["event"] == "log_format_doubtful"]


@pytest.mark.parametrize(
    ("rows", "items", "n"),
    [
        (['s\t"d"\t3'], ['"d"'], 1),  # a word in quotes, or one that was quoted without need
        (['s\t"2"" pipe"\t3', 's\t"c\t4'], ['"2"" pipe"', '"c'], 2),
        (['s\t"un\t3', 's\tdeux"\t4'], ['"un', 'deux"'], 1),  # two lines between stray quotes
    ],
)
def test_quotes_of_tab_separated_text_that_may_be_none_are_kept_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[str], items: list[str], n: int
) -> None:
    path = tmp_path / "log.tsv"
    path.write_text("\n".join([HEADER.strip().replace(",", "\t"), *rows]) + "\n")
    with capture_logs() as logs:
        assert [item for _, item, _ in read(path)] == items
        monkeypatch.setattr("train.data.source.HEAD_BYTES", len(HEADER))  # they come behind it
        assert [item for _, item, _ in read(path)] == items
        read(path, quoting="none")
    doubts = [line["found"] for line in logs if line["event"] == "log_format_doubtful"]
    assert doubts == 2 * [
        f"{n} fields begin with a quote and are read with it; if the quotes are no part of the "
        "values, set --columns quoting=rfc"
    ]


@pytest.mark.parametrize(
    ("note", "doubtful"),
    [("two\nlines", 0), ("two\nlines, and, with, commas", 1), ("\nmore\nlines", 0)],
)
def test_records_on_several_lines_are_counted_and_doubted_where_each_line_may_be_one(
    tmp_path: Path, note: str, doubtful: int
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f'note,{HEADER}x,s,a,1\n"{note}",s,b,2\n')
    with capture_logs() as logs:
        assert read(path) == CLICKS
    found = [line for line in logs if line["event"].startswith("log_format")]
    assert found[0]["records_on_several_lines"] == "1"
    assert len(found) == 1 + doubtful


@pytest.mark.parametrize("note", ["x", "CR\rthat the slow reader reads"])
def test_lines_between_two_stray_quotes_are_one_record_and_a_warning(
    tmp_path: Path, note: str
) -> None:
    path = tmp_path / "log.csv"
    lines = [f'"{note},s,a,1', "y,s,b,2", 'z",s,b,2', "x,s,c,3"]
    path.write_text("note," + HEADER + "\n".join(lines) + "\n", newline="")
    with capture_logs() as logs:
        assert len(read(path)) == 2
        assert len(read(path, quoting="none")) == 4
    doubts = [line["found"] for line in logs if line["event"] == "log_format_doubtful"]
    assert doubts == [
        "1 records span more than one line and have as many separators as if each line were a "
        "record; if no field is quoted, set --columns quoting=none"
    ]


@pytest.mark.parametrize(
    ("before", "separator", "skipped"),
    [
        ("sep=;\n", ";", "1"),
        ('"sep=^"\r\n', "^", "1"),
        ("# exported, by hand\n#\n", ",", "2"),
        ("SEP=|\n# clicks\n", "|", "2"),
        ("# a note\n# ", ",", "1"),  # of the header itself
    ],
)
def test_what_stands_before_the_header_is_skipped_and_said(
    tmp_path: Path, before: str, separator: str, skipped: str
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(before + PLAIN.replace(",", separator) + f"{separator}x{separator}3\n")
    with capture_logs() as logs:
        found = read_clicks(path)
    assert found.clicks["item_id"].to_list() == ["a", "b"]
    assert found.rejected_path is not None
    line = before.count("\n") + 4
    assert pl.read_csv(found.rejected_path)["line"].to_list() == [line]
    assert [line["skipped_lines"] for line in logs if "skipped_lines" in line] == [skipped]
    assert found.clicks.columns[0] == "session_id"


@pytest.mark.parametrize("first", ["#", "#7"])
def test_a_number_sign_may_begin_a_header_or_an_id(tmp_path: Path, first: str) -> None:
    path = tmp_path / "log.csv"
    if first == "#":
        path.write_text("#,session_id,item_id,timestamp_ms\n1,s,a,1\n2,s,b,2\n")
        assert read(path) == CLICKS
    else:
        path.write_text("#7,a,1\n#7,b,2\n#8,a,3\n")
        rows = read(path, session="1", item="2", time="3")
        assert rows == [("#7", "a", 1), ("#7", "b", 2), ("#8", "a", 3)]


@pytest.mark.parametrize(
    "dump",
    [
        "-- PostgreSQL database dump\n\nCOPY public.clicks (session_id) FROM stdin;\n1\n\\.\n",
        "-- MySQL dump 10.13\nDROP TABLE IF EXISTS `clicks`;\nINSERT INTO `clicks` VALUES (1,2);\n",
    ],
)
def test_a_dump_of_sql_is_refused_with_what_to_do(tmp_path: Path, dump: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(dump)
    with pytest.raises(TrainError, match=r"is a dump of SQL, with the line '(COPY|INSERT).*\\copy"):
        read(path)
    path.write_text("sep=;\n\n")
    with pytest.raises(TrainError, match=r"log\.csv is empty: it has no header"):
        read(path)
    path.write_text(PLAIN + "INSERT INTO a,b,3\n")
    assert len(read(path)) == 3


# Files


def write(path: Path, text: str) -> None:
    packed: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd.compress}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed.get(path.suffix, bytes)(text.encode()))


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".csv.zst", ".txt", ""])
def test_a_folder_of_text_files_is_one_log(tmp_path: Path, ending: str) -> None:
    logs = tmp_path / "logs"
    write(logs / f"1{ending}", PLAIN)
    write(logs / "day" / f"2{ending}", "page,item_id,session_id,timestamp_ms\nhome,c,t,3\n,,t,4\n")
    write(logs / "_SUCCESS", "")
    write(logs / ".1.csv.crc", "crc")
    found = read_clicks(logs)
    assert found.clicks["item_id"].to_list() == ["a", "b", "c"]
    assert found.clicks["page"].to_list() == [None, None, "home"]
    assert (found.n_records, found.rejected) == (4, {Reason.BAD_ITEM_ID: 1})
    written = pl.read_csv(tmp_path / "logs.rejected.csv", infer_schema=False)
    assert written.rows(named=True) == [
        {
            "file": str(logs / "day" / f"2{ending}"),
            **{"line": "3", "reason": "bad_item_id", "record": ",,t,4"},
        }
    ]
    assert len(read(logs / f"*{ending}" if ending else logs / "[0-9]")) == 2


def test_files_of_two_kinds_are_not_one_log(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", PLAIN)
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(TrainError, match=r"has a\.csv and b\.parquet, which are not of one kind"):
        read(tmp_path)
    assert read(tmp_path / "*.csv") == CLICKS
    (tmp_path / "b.parquet").unlink()
    write(tmp_path / "README.txt", "The logs of May, one file a day\n")
    with pytest.raises(TrainError, match=r"README\.txt has none of the columns session_id, item"):
        read(tmp_path)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_file_that_is_cut_short_or_is_not_what_its_name_says_is_one_sentence(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"log.csv{ending}"
    write(path, HEADER + "".join(f"s{n},i{n * 7919 % 1000},{n}\n" for n in range(2000)))
    whole = path.read_bytes()
    for n_bytes in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(TrainError, match=rf"log\.csv\{ending} is cut short: "):
            read(path)
    path.write_text(PLAIN)
    with pytest.raises(TrainError, match=f"though its name ends in {ending}"):
        read(path)
    (tmp_path / "log.csv").write_bytes(whole)
    assert len(read(tmp_path / "log.csv")) == 2000


def test_other_archives_and_parquet_by_another_name_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(TrainError, match="is a zip file; expected text, gzip or Zstandard"):
        read(tmp_path / "log.csv")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "log.csv")
    with pytest.raises(TrainError, match=r"is a Parquet file; rename it to end in \.parquet"):
        read(tmp_path / "log.csv")


@pytest.mark.parametrize(
    ("sign", "lake"),
    [
        ("_delta_log/00000000000000000000.json", "Delta Lake"),
        ("metadata/v1.metadata.json", "Iceberg"),
        (".hoodie/hoodie.properties", "Hudi"),
    ],
)
def test_a_lake_is_refused_by_name(tmp_path: Path, sign: str, lake: str) -> None:
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "part-0.parquet")
    write(tmp_path / sign, "{}")
    for log in (tmp_path, tmp_path / "*.parquet"):
        with pytest.raises(TrainError, match=f"is a {lake} table, .* to a folder of Parquet"):
            read(log)


# JSON


def test_json_lines_have_nested_keys_by_their_paths_and_exact_numbers(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    big = 2**70
    lines = [
        {"who": {"id": big}, "properties": {"product_id": 1004}, "at": 1, "ok": True, "x.y": "z"},
        {"who": {"id": "é"}, "properties": {"product_id": 1004.5, "tags": [1, 2]}, "at": 2},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    path.write_text(text + '\n\n{"who": 1, "at": \n[1]\n{"at":3}', encoding="utf-8")
    columns = Columns(session="who.id", item="properties.product_id", time="at")
    found = read_clicks(path, columns)
    assert found.clicks.rows(named=True) == [
        {
            **{"session_id": str(big), "item_id": "1004", "timestamp_ms": 1},
            **{"ok": "true", "x.y": "z", "properties.tags": None},
        },
        {
            **{"session_id": "é", "item_id": "1004.5", "timestamp_ms": 2},
            **{"ok": None, "x.y": None, "properties.tags": "[1,2]"},
        },
    ]
    assert found.rejected == {Reason.BAD_FIELD: 2, Reason.NO_SESSION_ID: 1}
    written = pl.read_csv(tmp_path / "log.jsonl.rejected.csv", infer_schema=False)
    assert written["line"].to_list() == ["4", "5", "6"]
    assert written["record"].to_list() == ['{"who": 1, "at": ', "[1]", '{"at":3}']


@pytest.mark.parametrize("name", ["log.jsonl.gz", "log.ndjson", "log.txt"])
def test_a_list_of_events_is_a_record_of_each(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    sessions = [
        {"session": 1, "events": [{"aid": 5, "ts": 1}, {"aid": 6, "ts": 2}], "other": [{"x": 1}]},
        {"session": 2, "events": []},
        {"session": 3, "events": [{"aid": 7, "ts": 3}, 8]},
    ]
    write(path, "".join(json.dumps(line) + "\n" for line in sessions))
    otto = {"session": "session", "item": "events.aid", "time": "events.ts"}
    assert read(path, **otto) == [("1", "5", 1), ("1", "6", 2), ("3", "7", 3)]
    found = read_clicks(path, Columns.model_validate(otto))
    assert (found.n_records, found.rejected) == (5, {Reason.BAD_ITEM_ID: 2})
    with pytest.raises(TrainError, match=r"events\.aid \(in events\) and other\.x \(in other\)"):
        read(path, session="session", item="events.aid", time="other.x")


@pytest.mark.parametrize("order", [1, -1])
def test_one_event_and_a_list_of_them_may_stand_at_the_same_path(
    tmp_path: Path, order: int
) -> None:
    path = tmp_path / "log.jsonl"
    lines = [
        {"session": 1, "events": {"aid": 5, "ts": 1}},
        {"session": 1, "events": [{"aid": 6, "ts": 2}, {"aid": 7, "ts": 3}]},
    ]
    write(path, "".join(json.dumps(line) + "\n" for line in lines[::order]))
    otto = {"session": "session", "item": "events.aid", "time": "events.ts"}
    assert read(path, **otto) == [("1", "5", 1), ("1", "6", 2), ("1", "7", 3)]


def test_a_list_or_an_object_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    head = '{"session_id":"s","item_id":7,"timestamp_ms":1}\n'
    for value in "[1,2]", '{"id":1}', '[{"id":1}]':
        path.write_text(f'{head}{{"session_id":"s","item_id":{value},"timestamp_ms":1}}\n')
        with pytest.raises(TrainError, match=r"'item_id' has values such as .*; expected one valu"):
            read(path)
    path.write_text(f'{head}{{"session_id":"s","item_id":[1,2],"timestamp_ms":1}}\n')
    # Of what comes behind the beginning, the record alone is spoilt.
    with monkeypatch.context() as patch:
        patch.setattr("train.data.source.HEAD_BYTES", len(head))
        found = read_clicks(path)
    assert (len(found.clicks), found.rejected) == (1, {Reason.BAD_ITEM_ID: 1})
    table = pl.DataFrame({"session_id": "s", "item_id": [[1, 2]], "timestamp_ms": 1})
    table.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(TrainError, match=r"cannot be an id: name a path .* row for each of its el"):
        read(tmp_path / "log.parquet")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "cp1252", "latin-1"])
def test_the_encoding_of_json_is_found_out_or_said(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "log.jsonl"
    line = {"session_id": "é", "item_id": "ü", "timestamp_ms": 1}
    path.write_text(f"{json.dumps(line, ensure_ascii=False)}\n", encoding=encoding)
    with capture_logs() as logs:
        assert read(path) == [("é", "ü", 1)]
    said = {"utf-16-be": "utf-16-be", "latin-1": "cp1252", "utf-8-sig": None}
    found = [line.get("encoding") for line in logs if line["event"] == "log_format_found"]
    assert found == [name for name in [said.get(encoding, encoding)] if name]
    assert read(path, encoding=encoding.removesuffix("-sig")) == [("é", "ü", 1)]


def test_a_json_array_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text('[{"session_id": "s"},\n{"session_id": "s"}]')
    with pytest.raises(TrainError, match=r"is one JSON array; .* jq -c '\.\[\]' log\.json > log"):
        read(path)
    path.write_text('{"a":\n[{"session_id": "s"}]}')
    with pytest.raises(TrainError, match="no line is an object; expected one a line"):
        read(path)


def test_nested_columns_of_parquet_are_read_by_their_paths(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    table = pl.DataFrame(
        {
            "user": [{"id": 1}, {"id": 2}, {"id": 3}],
            "at": [1, 2, 3],
            "items": [[{"item_id": "a"}, {"item_id": "b"}], [], [{"item_id": None}]],
            "others": [[{"x": 1}]] * 3,
        }
    )
    table.write_parquet(path)
    ga4 = {"session": "user.id", "item": "items.item_id", "time": "at"}
    assert read(path, **ga4) == [("1", "a", 1), ("1", "b", 1)]
    found = read_clicks(path, Columns.model_validate(ga4))
    assert (found.n_records, found.rejected) == (4, {Reason.BAD_ITEM_ID: 2})
    written = pl.read_csv(tmp_path / "log.parquet.rejected.csv")
    assert written["line"].to_list() == [2, 3]
    assert json.loads(written["record"][1])["items"] == [{"item_id": None}]
    with pytest.raises(TrainError, match="stand in the lists items and others"):
        read(path, session="user.id", item="items.item_id", time="others.x")
    with pytest.raises(TrainError, match=r"no column 'user\.name'"):
        read(path, session="user.name", item="items.item_id", time="at")


# The law


def test_of_a_log_without_a_good_click_only_the_beginning_is_written(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    bad = ["s,a,x\n", "s,,1\n"]
    path.write_text(HEADER + "".join(bad[n % 3 > 1] for n in range(900)))
    with pytest.raises(TrainError, match=r"\(bad_timestamp 600, bad_item_id 300\), see .* first 1"):
        read(path)
    written = pl.read_csv(tmp_path / "log.csv.rejected.csv", infer_schema=False)
    assert sorted(written["reason"].value_counts().rows()) == [
        ("bad_item_id", SHOWN_OF_BAD_LOG),
        ("bad_timestamp", SHOWN_OF_BAD_LOG),
    ]


def test_an_event_of_another_type_is_filtered_good_or_not(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "session_id,item_id,timestamp_ms,event_type\n"
        "s,a,1,view\ns,,2,search\ns,b,3,search\ns,,4,view\ns,c,5,\ns,d,6,view,x\n"
    )
    found = read_clicks(path, event_types=EventTypes(inputs=("view",)))
    assert found.clicks["item_id"].to_list() == ["a"]
    assert (found.n_records, found.n_filtered) == (6, 3)
    assert found.filtered_types == {"search": 2, "(none)": 1}
    assert found.rejected == {Reason.BAD_ITEM_ID: 1, Reason.BAD_FIELD: 1}


lines = st.sampled_from(
    [
        *(b"s,a,1", b"s,a,x", b"s,a,1,2", b"s", b",a,1", b'"s,a,1', b"", b"\r", b's,"a",1'),
        *(b's,"a\nb",1', b's,"a""b",1', b's,"a\\"b",1', b's,a",1', b"s,a\rb,1", b"s,\0,1"),
        *(b"s,\xe9,1", "s,é,1".encode(), b'"', b'""', b",,", b"\xff", b's,"a\n', b'b",2'),
    ]
)


@given(st.lists(lines), st.sampled_from([b"\n", b"\r\n"]), st.sampled_from([b"", b"\xef\xbb\xbf"]))
@example([b's,"a\\"b",1', b"s,a,1", b's,"c\\"",1'], b"\n", b"")
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
    max_examples=max(200, settings().max_examples),
)
def test_each_record_is_read_or_stands_in_the_rejected_file(
    tmp_path: Path, lines: list[bytes], end: bytes, mark: bytes
) -> None:
    """Whatever dialect is found out: no line is in neither, and none in both."""
    path = tmp_path / "log.csv"
    data = mark + HEADER.encode() + b"good,i,1\n" + end.join(lines)
    path.write_bytes(data)
    utf8 = Columns(encoding="utf-8")  # so that the file's bytes can be compared
    found = read_clicks(path, utf8)
    assert found.n_filtered == 0
    assert len(found.clicks) + sum(found.rejected.values()) == found.n_records
    rejected = []
    if found.rejected_path is not None:
        written = pl.read_csv(found.rejected_path, infer_schema=False)
        rejected = [int(line) for line in written["line"]]
        text = data.removeprefix(mark).split(b"\n")
        for line, record in zip(rejected, written["record"], strict=True):
            begin = text[line - 1].removesuffix(b"\r").decode(errors="backslashreplace")
            assert record.split("\n")[0] in (begin, begin + "\r")
    assert len(rejected) == sum(found.rejected.values())
    assert len(set(rejected)) == len(rejected)
    gz = tmp_path / "log.csv.gz"
    gz.write_bytes(gzip.compress(data))
    assert read_clicks(gz, utf8).clicks.equals(found.clicks)


def test_a_broken_record_is_rejected_whatever_types_are_asked_for(tmp_path: Path) -> None:
    """Of such a record nobody knows the type."""
    path = tmp_path / "log.csv"
    good = "s1,view,i1,1772323200000\ns1,view,i2,1772323201000\ns1,sale,i2,1772323201000\n"
    broken = 's9,extra,view,i1,1772323200000\ns9,"view,i1,1772323200000\n'
    path.write_text("session_id,event_type,item_id,timestamp_ms\n" + good + broken)
    found = read_clicks(path, event_types=EventTypes(inputs=("view",)))
    assert found.rejected == {Reason.BAD_FIELD: 2}
    assert (len(found.clicks), found.n_filtered, found.n_records) == (2, 1, 5)


def test_files_that_are_left_out_are_named_and_our_own_are_none(tmp_path: Path) -> None:
    for name in ("a.csv", "a.csv.rejected.csv", "events.log.1", "b.csv.bz2"):
        (tmp_path / name).write_text(PLAIN)
    (tmp_path / "empty.csv").touch()
    with capture_logs() as logs:
        assert read_clicks(tmp_path).n_records == 2
    (left_out,) = [line for line in logs if line["event"] == "files_left_out"]
    assert (left_out["files"], left_out["such_as"]) == (3, "b.csv.bz2, empty.csv, events.log.1")


def test_the_rejected_file_of_a_log_that_was_mended_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(PLAIN + "s,,3\n")
    rejected = read_clicks(path).rejected_path
    assert rejected is not None
    assert rejected.exists()
    path.write_text(PLAIN)
    assert read_clicks(path).rejected_path is None
    assert not rejected.exists()


def test_bytes_in_a_list_hinder_no_rejected_row(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    rows = {"session_id": ["s", "s"], "item_id": [None, "i"], "timestamp_ms": [1, 2]}
    tags = pl.Series([[b"a"], [b"b"]], dtype=pl.List(pl.Binary))
    pl.DataFrame(rows).with_columns(tags=tags).write_parquet(path)
    found = read_clicks(path, keep=[])
    assert found.rejected == {Reason.BAD_ITEM_ID: 1}
    assert found.rejected_path is not None
    assert '""timestamp_ms"":1' in found.rejected_path.read_text()


def test_utf_16_is_read_without_its_mark_too(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    for codec in ("utf-16", "utf-16-le", "utf-16-be"):
        path.write_bytes((PLAIN + "é,b,7\n").encode(codec))
        assert read(path, encoding="utf-16")[-1] == ("é", "b", 7)


@pytest.mark.parametrize("codec", ["base64", "utf-7", "unicode_escape", "idna", "klingon"])
def test_a_codec_that_cannot_read_all_bytes_is_refused(codec: str) -> None:
    with pytest.raises(ValidationError, match="an encoding that Python knows"):
        Columns(encoding=codec)
