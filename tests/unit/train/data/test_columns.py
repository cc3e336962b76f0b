"""Which columns of a log are a click."""

import pytest
from pydantic import ValidationError

from train.data.columns import Columns


def test_presets_can_be_changed_field_by_field() -> None:
    columns = Columns(preset="public", time="When", time_unit="iso")
    assert (columns.session, columns.item, columns.time) == ("SessionId", "ItemId", "When")
    with pytest.raises(ValidationError, match="preset"):
        Columns.model_validate({"preset": "private"})
