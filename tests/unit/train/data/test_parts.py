"""A collected log on disk: what a killed run leaves, and what the next one makes of it."""

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from structlog.testing import capture_logs

from train.data.clicks import read_clicks
from train.data.parts import MAX_FIELDS, STATE, Begin, CollectError, CollectState, Parts, load_state
from train.data.records import Record, Refusal

BEGIN = Begin(cluster="c", topic="clicks", since=None, from_offsets={})


def record(offset: int, **fields: object) -> Record:
    """Click number ``offset``, one of three sessions'."""
    session_id = f"s{offset % 3}"
    click = {"session_id": session_id, "item_id": f"i{offset}", "timestamp_ms": offset, **fields}
    return Record(0, offset, 10**6, session_id.encode(), json.dumps(click).encode())


def take(out: Path, records: Sequence[Record], *, per_part: int = 3, lost: int = 0) -> CollectState:
    """A run that is killed with the last ``lost`` records taken and not committed."""
    parts = Parts(out, load_state(out, BEGIN))
    parts.begin_partition(0)
    for number, taken in enumerate(records, 1):
        parts.take(taken)
        parts.reach(taken.partition, taken.offset + 1)
        if len(parts) >= per_part and number <= len(records) - lost:
            parts.commit()
    if not lost:
        parts.commit()
    return parts.state


def rows(out: Path) -> pl.DataFrame:
    return pl.concat(
        [pl.read_parquet(file) for file in sorted(out.glob("*.parquet"))], how="diagonal"
    )


@pytest.mark.parametrize("killed_after", range(1, 20, 3))
def test_a_killed_run_goes_on_to_the_rows_of_an_unbroken_one(
    tmp_path: Path, killed_after: int
) -> None:
    # Events 0 to 5 come round and round: three quarters of the clicks are repeats.
    records = [record(n, event_id=str(n % 6), page=n % 4) for n in range(20)]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    unbroken.mkdir()
    broken.mkdir()
    whole = take(unbroken, records)
    take(broken, records[:killed_after], lost=min(2, killed_after))
    (broken / "clicks-000099.parquet").write_bytes(b"renamed, and killed before it counted")
    (broken / "clicks-000001.parquet.begun").write_bytes(b"half of a")
    reached = load_state(broken, BEGIN).next_offset.get(0, 0)
    assert reached < killed_after
    state = take(broken, records[reached:])
    assert state.model_dump(exclude={"parts"}) == whole.model_dump(exclude={"parts"})
    assert rows(broken).equals(rows(unbroken))
    assert (state.clicks, state.repeated) == (6, 14)


def test_bad_clicks_are_counted_and_skipped(tmp_path: Path) -> None:
    bad = record(1)._replace(key=b"other"), record(2)._replace(value=b"{"), record(4, item_id="")
    state = take(tmp_path, [record(0), *bad, record(3)])
    assert state.refused == {
        Refusal.KEY_MISMATCH: 1,
        Refusal.NOT_JSON: 1,
        Refusal.BAD_ITEM_ID: 1,
    }
    assert rows(tmp_path)["kafka_offset"].to_list() == [0, 3]
    assert state.next_offset == {0: 4}


def test_fields_of_later_clicks_are_columns_too(tmp_path: Path) -> None:
    records = [record(n) for n in range(3)]
    records += [record(3, page="home", event_type="view"), record(4, page=7), record(5, page=True)]
    take(tmp_path, records)
    clicks = read_clicks(tmp_path).clicks.sort("kafka_offset")
    assert clicks["page"].to_list() == [None, None, None, "home", "7", "true"]
    assert clicks["event_type"].to_list() == [None, None, None, "view", None, None]
    assert clicks["kafka_topic"].unique().to_list() == ["clicks"]
    assert clicks["session_id"].to_list() == ["s0", "s1", "s2"] * 2
    assert not (tmp_path.parent / f"{tmp_path.name}.rejected.csv").exists()


def test_names_without_end_are_cut_off_with_a_warning(tmp_path: Path) -> None:
    records = [record(0, **{f"f{n}": n for n in range(MAX_FIELDS + 2)}), record(1, late=1)]
    with capture_logs() as warnings:
        state = take(tmp_path, records)
    assert [warning["event"] for warning in warnings] == ["fields_left_out"]
    assert len(state.fields) == MAX_FIELDS
    assert "late" not in rows(tmp_path).columns


def test_a_click_cannot_say_where_it_stands_in_kafka(tmp_path: Path) -> None:
    take(tmp_path, [record(5, kafka_offset=77, kafka_topic="other")])
    assert rows(tmp_path).row(0, named=True)["kafka_offset"] == 5


def test_a_folder_of_another_beginning_or_of_other_files_is_refused(tmp_path: Path) -> None:
    take(tmp_path, [record(0)])
    with pytest.raises(CollectError, match="with topic=clicks, not other"):
        load_state(tmp_path, BEGIN.model_copy(update={"topic": "other"}))
    (tmp_path / STATE).write_text("{}")
    with pytest.raises(CollectError, match=f"{STATE} does not say what was collected"):
        load_state(tmp_path, BEGIN)
    (tmp_path / STATE).unlink()
    with pytest.raises(CollectError, match="holds Parquet files and no"):
        load_state(tmp_path, BEGIN)
