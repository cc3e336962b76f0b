"""What of a log becomes the sessions of a training."""

from pathlib import Path

import polars as pl
import pytest

from tests.unit.train.building import markov_clicks
from train.command import TrainError
from train.data.filters import LONGEST_SESSION
from train.fit.training_log import LogSettings, read_training_log


@pytest.fixture
def with_robots(tmp_path: Path) -> Path:
    """40 sessions of people and two of robots: one begins with the oldest, one with the newest."""
    people = markov_clicks(1.0, n_sessions=40, n_items=20, seed=1)
    first_ms, last_ms = people["timestamp_ms"].min(), people["timestamp_ms"].max()
    items = people["item_id"].sample(LONGEST_SESSION + 1, with_replacement=True, seed=1)
    robots = [
        pl.DataFrame({"session_id": name, "item_id": items, "timestamp_ms": at})
        for name, at in (("old", first_ms), ("new", last_ms))
    ]
    path = tmp_path / "log.parquet"
    pl.concat([people, *robots]).write_parquet(path)
    return path


def test_robots_are_neither_learnt_from_nor_validated_on(with_robots: Path) -> None:
    log = read_training_log(LogSettings(clicks=with_robots))
    assert log.validation is not None
    assert (log.train.lengths.max(), log.validation.lengths.max()) == (6, 6)
    assert log.max_session_length == LONGEST_SESSION
    kept = LogSettings(clicks=with_robots, filters={"max_session_length": "0"})
    log = read_training_log(kept)
    assert log.validation is not None
    assert log.train.lengths.max() == log.validation.lengths.max() == LONGEST_SESSION + 1
    assert log.max_session_length == 0


def test_where_all_sessions_are_too_long_the_flags_are_named(with_robots: Path) -> None:
    limited = LogSettings(clicks=with_robots, filters={"max_session_length": "5"}, validation=0.0)
    with pytest.raises(TrainError, match="1242 clicks are in sessions of more than 5; cut them"):
        read_training_log(limited)
