"""Event types as inputs and as targets."""

from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from train.command import TrainError
from train.data.clicks import read_clicks
from train.data.filters import EventTypes, weigh_events
from train.data.sessions import TARGET_WEIGHT, build_sessions


def log(types: list[object], **columns: object) -> pl.DataFrame:
    """Clicks of session s on items 0, 1, 2, ... of these types."""
    n = len(types)
    return pl.DataFrame(
        {
            "session_id": ["s"] * n,
            "item_id": [str(i) for i in range(n)],
            "timestamp_ms": list(range(n)),
            "event_type": types,
        }
    ).with_columns(**{name: pl.lit(value) for name, value in columns.items()})


def test_types_that_are_no_inputs_leave_the_sessions() -> None:
    clicks = log(["view", "cart", None, "view"])
    left = weigh_events(clicks, EventTypes(inputs=("view",)))
    assert left["item_id"].to_list() == ["0", "3"]
    assert build_sessions(left).sessions.target_weight.tolist() == [1, 1]


def test_a_target_counts_its_weight_and_every_other_type_nothing() -> None:
    clicks = log(["view", "cart", "purchase", None])
    weighed = weigh_events(clicks, EventTypes(targets={"cart": 2.0, "purchase": 0.5}))
    assert build_sessions(weighed).sessions.target_weight.tolist() == [0, 2, 0.5, 0]


def test_numbers_are_named_by_their_text() -> None:
    weighed = weigh_events(
        log([1, 2, 2]).rename({"event_type": "kind"}), EventTypes(column="kind", targets={"2": 1.0})
    )
    assert weighed[TARGET_WEIGHT].to_list() == [0, 1, 1]


def test_a_session_that_now_begins_later_stands_later(tmp_path: Path) -> None:
    clicks = pl.DataFrame(
        {
            "session_id": ["a", "a", "b", "b"],
            "item_id": ["1", "2", "3", "4"],
            "timestamp_ms": [0, 9, 5, 6],
            "event_type": ["ping", "view", "view", "view"],
        }
    )
    clicks.write_parquet(tmp_path / "log.parquet")
    left = read_clicks(tmp_path / "log.parquet", event_types=EventTypes(inputs=("view",))).clicks
    assert left["session_id"].to_list() == ["b", "b", "a"]


def test_the_default_changes_nothing_and_needs_no_column() -> None:
    clicks = log(["view"]).drop("event_type")
    assert weigh_events(clicks, EventTypes()) is clicks


@pytest.mark.parametrize(
    ("event_types", "sentence"),
    [
        (EventTypes(column="kind", inputs=("view",)), "no column 'kind'"),
        (
            EventTypes(inputs=("look", "buy")),
            "one of the event types buy, look; the values of event_type are",
        ),
        (
            EventTypes(targets={"view": 0.0, "buy": 1.0}),
            "one of the event types buy, the ones of a weight above 0;",
        ),
    ],
)
def test_a_log_without_such_events_is_one_sentence(event_types: EventTypes, sentence: str) -> None:
    with pytest.raises(TrainError, match=sentence):
        weigh_events(log(["view", "cart"]), event_types)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"inputs": []}, "inputs is empty"),
        ({"targets": {"view": 0}}, "no weight above 0"),
        ({"inputs": ["view"], "targets": {"buy": 1}}, "'buy', which is not one of the inputs"),
        ({"targets": {"view": -1}}, "greater than or equal to 0"),
        ({"targets": {"view": 2e6}}, "less than or equal to 1000000"),
        ({"targets": {"view": float("inf")}}, "finite number"),
    ],
)
def test_settings_that_leave_nothing_are_refused(given: object, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        EventTypes.model_validate(given)
