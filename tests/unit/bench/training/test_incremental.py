"""Going on from a checkpoint against training anew, on a tiny shop."""

import pytest

from bench.lab.grid import SYNTHETIC, DataSet
from bench.lab.run import Parts
from bench.training.incremental import IncrementalBench, Row, compare, run
from train.command import TrainError
from train.data.clicks import split_by_time
from train.data.synthetic import SyntheticConfig, generate_synthetic
from train.fit.loop import Schedule

TINY = DataSet(
    SYNTHETIC,
    {
        "embedding": "separate",
        "hidden_size": 8,
        "n_negatives": 16,
        "batch_size": 32,
        "learning_rate": 0.1,
    },
    Schedule(epochs=2),
)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    known, test = split_by_time(generate_synthetic(2000, SyntheticConfig(seed=1, n_items=240)), 0.2)
    parts = Parts(*split_by_time(known, 0.2), test)
    return list(compare(TINY, parts, seed=1, new_fraction=0.4))


def test_every_way_knows_the_items_of_all_sessions_and_ranks_the_same(rows: list[Row]) -> None:
    older, anew, whole, new = rows
    assert older["clicks"] + new["clicks"] == anew["clicks"] == whole["clicks"]
    assert older["items"] < anew["items"] == whole["items"] == new["items"]
    asked = {row["test"]["predictions"] for row in (older, anew, whole, new)}
    assert len(asked) == 1


def test_going_on_begins_where_the_older_model_stood(rows: list[Row]) -> None:
    reached = [row["test"]["recall_at_20"] for row in rows]
    assert reached[2] > reached[1], "four epochs over the older part beside two"
    assert reached[3] > reached[0]


def test_an_unknown_data_set_is_named() -> None:
    with pytest.raises(TrainError, match=r"unknown data set 'nowhere': bench/lab/grid\.py has "):
        run(IncrementalBench(datasets=["nowhere"]))
