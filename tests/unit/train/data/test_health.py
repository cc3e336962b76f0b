"""A log's figures by hand, and a warning for each fault that is planted into a sound log."""

import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.unit.train.building import markov_clicks
from train.__main__ import main
from train.data.clicks import read_clicks
from train.data.columns import Columns
from train.data.filters import DAY_MS, LONGEST_SESSION, EventTypes
from train.data.health import LAST_DAYS, Health, describe, figures_of
from train.data.synthetic import FIRST_DAY_MS, generate_synthetic
from train.fit.training_log import health_of

LOGS = Path(os.environ.get("NEXTCLICK_DATA", "../shared/data"))
PUBLIC = ("diginetica-sessions", "rsc15-100k", "globo-5d", "foursquare-nyc")
SOUND = markov_clicks(0.9, n_sessions=300, n_items=100, seed=1)
AT, ITEM = pl.col("timestamp_ms"), pl.col("item_id")


def read_and_examine(clicks: pl.DataFrame, tmp_path: Path, visitor: str | None = None) -> Health:
    path = tmp_path / "log.parquet"
    clicks.write_parquet(path)
    columns, idle_timeout_s = Columns(visitor=visitor), 1800 if visitor else None
    log = read_clicks(path, columns, idle_timeout_s=idle_timeout_s, keep=[])
    return health_of(log)


def session_of(n_clicks: int, name: str = "x") -> pl.DataFrame:
    """On the sound log's items, a click a second."""
    items = SOUND["item_id"].sample(n_clicks, with_replacement=True, seed=1)
    at_ms = [FIRST_DAY_MS + 1000 * n for n in range(n_clicks)]
    return pl.DataFrame({"session_id": name, "item_id": items, "timestamp_ms": at_ms})


def test_the_figures_are_those_counted_by_hand(tmp_path: Path) -> None:
    day = [FIRST_DAY_MS + n * DAY_MS for n in range(3)]
    rows = [
        ("s", "a", day[0]),
        ("s", "a", day[0]),  # a duplicate, and a repeat
        ("s", "b", day[0] + 3_600_000),
        ("t", "b", day[1]),
        ("u", "b", day[2]),
        ("u", "c", day[2] + 1),
        ("u", "b", day[2] + 2),
        (None, "b", day[2]),
    ]
    log = pl.DataFrame(rows, schema=["session_id", "item_id", "timestamp_ms"], orient="row")
    health = read_and_examine(log, tmp_path)
    assert (health.records, health.clicks, health.rejected) == (8, 7, {"no_session_id": 1})
    assert (health.sessions, health.items, health.visitors) == (3, 3, None)
    assert health.lengths == {"median": 3, "p90": 3, "p99": 3, "longest": 3}
    assert health.single_click_sessions == pytest.approx(1 / 3)
    assert health.repeats == pytest.approx(1 / 4)
    assert health.duplicates == pytest.approx(1 / 7)
    assert health.unshared == pytest.approx(3 / 7), "two clicks on a, one on c"
    assert health.top_percent == health.largest_item == pytest.approx(4 / 7)
    assert health.top_10 == pytest.approx(1)
    assert health.largest_session == pytest.approx(3 / 7)
    assert health.last_days == [("2024-01-01", 3, 2), ("2024-01-02", 1, 0), ("2024-01-03", 3, 1)]
    assert health.clicks_by_hour[:2] == [6, 1]


def test_filtered_types_are_named_the_most_frequent_first(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    kinds = [*["view"] * 30, *["search"] * 20, *[f"type{n}" for n in range(9)]]
    clicks = SOUND.head(len(kinds)).with_columns(
        event_type=pl.Series(kinds), item_id=pl.when(pl.Series(kinds) != "search").then("item_id")
    )
    clicks.write_parquet(path)
    log = read_clicks(path, event_types=EventTypes(inputs=("view",)))
    line = next(text for label, text in figures_of(health_of(log)) if label == "  filtered")
    assert line == (
        "29 (event types that are not wanted: search 20, type0 1, type1 1, type2 1, type3 1, "
        "others 5)"
    )


def test_a_sound_log_has_no_warning_and_one_screen(tmp_path: Path) -> None:
    for clicks in (SOUND, generate_synthetic(20_000)):
        health = read_and_examine(clicks, tmp_path)
        assert health.findings == []
        screen = describe(health, "log.parquet")
        assert screen.endswith("nothing looks wrong")
        assert len(screen.splitlines()) < 40


def with_time(at: pl.Expr) -> pl.DataFrame:
    return SOUND.with_columns(timestamp_ms=at)


FAULTS: dict[str, tuple[Callable[[], pl.DataFrame], str]] = {
    "a long session": (
        lambda: pl.concat([SOUND, session_of(LONGEST_SESSION + 1)]),
        "robot_session: sessions of more than 500 clicks: 1, with 501 of the 2,301 clicks",
    ),
    "an outsized session": (
        lambda: pl.concat([SOUND, session_of(120)]),
        "robot_session: session 'x' has 120 of 1,920 clicks",
    ),
    "event types as items": (
        lambda: SOUND.with_columns(item_id="v" + (ITEM.cast(pl.Int64) % 3).cast(pl.String)),
        "few_items: 1,800 clicks on 3 items, such as v0, v1, v2",
    ),
    "a page that all pass": (
        lambda: SOUND.with_columns(
            item_id=pl.when(ITEM.cast(pl.Int64) > 35).then(pl.lit("home")).otherwise(ITEM)
        ),
        "one_item: item 'home' has 6",
    ),
    "items with the session in their name": (
        lambda: SOUND.with_columns(item_id=pl.col("session_id") + ITEM),
        "unshared_items: 100.0% of the clicks",
    ),
    "blanks": (
        lambda: SOUND.with_columns(
            item_id=pl.when(pl.int_range(pl.len()) % 9 == 0).then(" " + ITEM).otherwise(ITEM)
        ),
        "padded_ids: ",
    ),
    "zeros": (
        lambda: SOUND.with_columns(
            item_id=pl.when(pl.int_range(pl.len()) % 9 == 0).then("00" + ITEM).otherwise(ITEM)
        ),
        "lost_zeros: ",
    ),
    "an export that ran twice": (
        lambda: pl.concat([SOUND, SOUND]),
        "duplicates: 50.0% of the clicks",
    ),
    "a session for each click": (
        lambda: SOUND.with_columns(session_id=pl.int_range(pl.len()).cast(pl.String)),
        "single_clicks: 100.0% of the sessions",
    ),
    "seconds as milliseconds": (
        lambda: with_time(FIRST_DAY_MS + 10 * pl.int_range(pl.len())),
        "short_span: 1,800 clicks within 17.99 s",
    ),
    "dates": (
        lambda: with_time(AT // DAY_MS * DAY_MS + pl.int_range(pl.len()) // 600 * DAY_MS),
        "dates_alone: all clicks are at the same time of day",
    ),
    "a part in seconds": (
        lambda: with_time(pl.when(pl.int_range(pl.len()) < 600).then(AT // 1000).otherwise(AT)),
        "mixed_times: 600 of 1,800 clicks are before 2000",
    ),
    "thirty years": (
        lambda: with_time(
            pl.when(pl.int_range(pl.len()) == 0).then(AT - 23 * 366 * DAY_MS).otherwise(AT)
        ),
        "long_span: the clicks span 23 years",
    ),
    "bad rows": (
        lambda: SOUND.with_columns(item_id=pl.when(pl.int_range(pl.len()) % 10 > 0).then(ITEM)),
        "many_rejected: of 1,800 records, rejected are bad_item_id 180",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_warning_on_the_screen(fault: str, tmp_path: Path) -> None:
    make, expected = FAULTS[fault]
    health = read_and_examine(make(), tmp_path)
    (found,) = (str(f) for f in health.findings if str(f).startswith(expected))
    screen = describe(health, "log.parquet")
    assert " ".join(screen.split()).count(" ".join(found.split())) == 1
    assert "nothing looks wrong" not in screen
    assert len(screen.splitlines()) < 40


def test_a_visitor_is_one_however_many_sessions_it_has(tmp_path: Path) -> None:
    robot = session_of(400, "robot").with_columns(AT + pl.int_range(pl.len()) // 20 * 3_600_000)
    clicks = pl.concat([SOUND, robot]).rename({"session_id": "who"})
    health = read_and_examine(clicks, tmp_path, visitor="who")
    assert health.visitors == 301
    assert health.lengths["longest"] == 20
    assert health.largest_visitor == pytest.approx(400 / 2_200)
    assert "visitor 'robot' has 400 of 2,200 clicks" in describe(health, "")


def test_an_order_in_place_of_times_has_no_clock(tmp_path: Path) -> None:
    health = read_and_examine(with_time(1000 * pl.int_range(pl.len())), tmp_path)
    assert not health.is_clock
    assert (health.clicks_by_hour, health.last_days, health.findings) == ([], [], [])
    assert "an order, from 0 to 1,799,000 ms: no clock" in describe(health, "")


def test_only_the_newest_days_are_shown(tmp_path: Path) -> None:
    health = read_and_examine(generate_synthetic(3_000), tmp_path)
    assert len(health.last_days) == LAST_DAYS
    assert health.last_days[-1][0] >= "2024-01-14"


def test_a_few_clicks_are_no_reason_to_warn(tmp_path: Path) -> None:
    assert read_and_examine(session_of(40).head(40), tmp_path).findings == []


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_logs_have_no_warning(name: str) -> None:
    path = LOGS / name / "train.tsv.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there; set NEXTCLICK_DATA")
    log = read_clicks(path, Columns(preset="public"), keep=[])
    assert health_of(log).findings == []


def test_look_prints_the_screen_of_a_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.csv"
    SOUND.with_columns(kind=pl.lit("view")).rename({"item_id": "thing"}).write_csv(path)
    words = ["look", str(path), "--columns", "item=thing,event_type=kind", "--event-types", "view"]
    assert main(words) == 0
    screen = capsys.readouterr().out
    assert screen.startswith(f"{path}\nrecords                 1,800\n")
    assert screen.endswith("nothing looks wrong\n")
    assert main(["look", str(path)]) == 2
    assert "has no column 'item_id'" in capsys.readouterr().err
