import pytest

from train.data.columns import Columns
from train.fit.training_log import LogSettings
from train.pairs import from_pairs


def test_pairs_are_read_with_dashes_or_underscores() -> None:
    settings = LogSettings.model_validate(
        {
            "clicks": "log.csv",
            "columns": "session=sid, item=sku,time-unit=iso",
            "filters": "min-item-support=5,drop_repeats=true",
        }
    )
    columns = settings.log_columns
    assert (columns.session, columns.item, columns.time) == ("sid", "sku", "timestamp_ms")
    assert columns.time_unit == "iso"
    assert (settings.log_filters.min_item_support, settings.log_filters.drop_repeats) == (5, True)


def test_a_public_log_has_its_names_and_may_differ_in_one() -> None:
    settings = LogSettings.model_validate({"clicks": "log.csv", "columns": "public,item=ItemID"})
    columns = settings.log_columns
    assert (columns.session, columns.item, columns.time_unit) == ("SessionId", "ItemID", "s")


def test_event_types_advance_sessions_and_weigh_targets() -> None:
    settings = LogSettings.model_validate(
        {"clicks": "log.csv", "event_types": "add-to-cart=0,view", "columns": "event_type=kind"}
    )
    found = settings.log_event_types
    assert (found.column, found.inputs) == ("kind", ("add-to-cart", "view"))
    assert found.targets == {"add-to-cart": 0, "view": 1}
    plain = LogSettings.model_validate({"clicks": "log.csv", "event_types": "view,cart=1"})
    assert plain.log_event_types.targets is None
    assert LogSettings(clicks="log.csv").log_event_types.inputs is None


def test_a_wrong_pair_is_named_with_what_is_expected() -> None:
    with pytest.raises(ValueError, match="colour is unknown, expected preset, session, visitor"):
        from_pairs(Columns, {"colour": "red"})
    with pytest.raises(ValueError, match="time_unit=hours: Input should be 's', 'ms', 'us', "):
        from_pairs(Columns, {"time_unit": "hours"})
