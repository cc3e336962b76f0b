"""Which columns of a log are a click."""

from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from train.command import TrainError
from train.data.clicks import read_clicks
from train.data.columns import KNOWN_COLUMNS, Columns, find_columns, likely_columns
from train.data.filters import EventTypes
from train.fit.training_log import LogSettings, how_read, read_training_log

REES46 = "event_time event_type product_id category_id brand price user_id user_session"


def test_presets_can_be_changed_field_by_field() -> None:
    columns = Columns(preset="public", time="When", time_unit="iso")
    assert (columns.session, columns.item, columns.time) == ("SessionId", "ItemId", "When")
    with pytest.raises(ValidationError, match="preset"):
        Columns.model_validate({"preset": "private"})


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("SessionId ItemId Time", ("SessionId", "ItemId", "Time")),
        (REES46, ("user_session", "product_id", "event_time")),
        ("timestamp visitorid event itemid transactionid", ("visitorid", "itemid", "timestamp")),
        ("t_dat customer_id article_id price", ("customer_id", "article_id", "t_dat")),
        ("anonymousId userId Product-ID timestamp", ("anonymousId", "Product-ID", "timestamp")),
        ("session_id visitor_id item_id timestamp_ms", ("session_id", "item_id", "timestamp_ms")),
        (
            "sessionId userId itemId timeframe eventdate",
            ("sessionId", "itemId", "eventdate", "timeframe"),
        ),
    ],
)
def test_known_columns_are_found(names: str, found: tuple[str, ...]) -> None:
    columns = find_columns("log.csv", names.split(), Columns())
    assert columns.sources() == found
    assert find_columns("log.csv", names.split(), columns) == columns


def test_the_type_of_event_is_found_where_it_has_another_name() -> None:
    names = ["timestamp", "visitorid", "event", "itemid"]
    assert find_columns("log.csv", names, Columns()).event_type == "event"
    assert find_columns("log.csv", [*names, "event_type"], Columns()).event_type == "event_type"
    assert find_columns("log.csv", names[:2] + names[3:], Columns()).event_type == "event_type"


@pytest.mark.parametrize(
    ("names", "given", "sentence"),
    [
        (
            "session_id product_id article_id time",
            {},
            r"no column 'item_id'; .*: set item=product_id or item=article_id in --columns",
        ),
        (
            "user_session session item_id time",
            {},
            r"no column 'session_id'; .*: set session=user_session or session=session in",
        ),
        (
            "user_id item_id time",
            {"session": "sid"},
            r"no column 'sid'; .*: set visitor=user_id in",
        ),
        ("session_id item_id time", {"item": "sku"}, r"no column 'sku'; .*: set item=item_id in"),
        (
            "session_id item_id moment",
            {},
            r"are session_id, item_id, moment: set time=NAME in --columns",
        ),
        (
            "session_id item_id cat visited_at dateAdded time_local clickDate format ts-utc",
            {},
            r": set time=visited_at or time=dateAdded or time=time_local or time=clickDate or "
            r"time=ts-utc in --columns",
        ),
        ("a item_id time", {}, r"no column 'session_id'; .*: set session=NAME or visitor=NAME in"),
        ("session_id item_id time", {"visitor": "who"}, r"no column 'who'; .*: set visitor=NAME"),
    ],
)
def test_a_missing_column_is_a_sentence_with_the_likely_ones_and_the_flag(
    names: str, given: dict[str, str], sentence: str
) -> None:
    with pytest.raises(TrainError, match=sentence):
        find_columns("log.csv", names.split(), Columns.model_validate(given))


def test_no_known_name_stands_for_two_things() -> None:
    known = [name for rows in KNOWN_COLUMNS.values() for row in rows for name in row]
    assert len({name.replace("_", "") for name in known}) == len(known)
    for role, rows in KNOWN_COLUMNS.items():
        for row in rows:
            for name in row:
                assert likely_columns([name.upper(), *name.split("+")], role)


def test_what_is_found_is_said_as_the_flag_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"{REES46.replace(' ', ',')}\n2026-09-21 14:13:20 UTC,view,1,2,b,3.5,u,s\n")
    with capture_logs() as logs:
        found = read_clicks(path, event_types=EventTypes(inputs=("view",)))
    assert [(line["event"], line["columns"]) for line in logs] == [
        (
            "log_format_found",
            "session=user_session,item=product_id,time=event_time,time_unit=iso",
        )
    ]
    said = logs[0]["columns"]
    with capture_logs() as logs:
        settings = LogSettings.model_validate({"clicks": path, "columns": said})
        again = read_clicks(path, settings.log_columns)
    assert logs == []
    assert again.clicks.drop("event_type").equals(found.clicks.drop("event_type"))


def test_a_log_of_visitors_is_learnt_from_with_the_idle_timeout_that_was_found(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.csv"
    at = [1_396_437_466_123 + 60_000 * minute for minute in range(40)]
    pl.DataFrame(
        {
            "visitorid": [str(n // 4) for n in range(40)],
            "itemid": ["a", "b"] * 20,
            "timestamp": at,
            "event": ["view", "view", "cart", "view"] * 10,
        }
    ).write_csv(path)
    settings = LogSettings.model_validate({"clicks": path, "event_types": "view"})
    found = read_training_log(settings)
    assert found.idle_timeout_s == 1800
    assert found.event_types == EventTypes(column="event", inputs=("view",))
    assert (found.event_types, found.idle_timeout_s) == how_read(settings)
    given = LogSettings.model_validate(
        {
            "clicks": path,
            "event_types": "view",
            "columns": "visitor=visitorid,item=itemid,time=timestamp,event_type=event",
            "idle_timeout_s": 1800,
        }
    )
    assert read_training_log(given).content_hash() == found.content_hash()
