import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.unit.train.building import sessions_of
from train.baselines.named import build_baselines
from train.command import TrainError
from train.data.sessions import TARGET_WEIGHT, Catalogue, Indexed
from train.measure.metrics import Lost
from train.measure.ranking import Ranks
from train.measure.results import (
    Evaluation,
    LogCounts,
    Training,
    compare_kept,
    describe_log,
    evaluate,
    load_evaluations,
    save_evaluation,
)
from train.network.checkpoint import EpochRecord

SESSIONS = sessions_of([[0, 1, 2], [1, 2, 1], [2, 0], [3, 3, 0, 1]])
SUPPORT = np.bincount(SESSIONS.item_index, minlength=5)


def made(model: str = "markov", epochs: int = 0) -> Evaluation:
    indexed = Indexed(SESSIONS, Catalogue(list("abcde")), dropped_clicks=3, dropped_sessions=1)
    history = [
        EpochRecord(epoch=n, loss=1 / n, clicks_per_second=9.0, seconds=1.0, metrics={})
        for n in range(1, epochs + 1)
    ]
    return evaluate(
        model,
        build_baselines(SESSIONS, 5)["markov"],
        SESSIONS,
        describe_log("toy", indexed, Lost(2, 2.0)),
        SUPPORT,
        training=Training(epoch=1, history=history) if epochs else None,
    )


def content_hash(clicks: pl.DataFrame) -> str:
    indexed = Indexed(SESSIONS, Catalogue(list("abcde")), dropped_clicks=3, dropped_sessions=1)
    return describe_log("toy", indexed, clicks=clicks).content_hash


def test_logs_of_one_name_are_told_apart_by_all_their_clicks() -> None:
    clicks = pl.DataFrame(
        {
            "session_id": ["s", "s", "t"],
            "item_id": ["a", "ab", "c"],
            "timestamp_ms": [1, 2, 3],
            "price": [1.5, None, 3.0],
            "tags": [["x"], [], ["y"]],
            "took": pl.Series([1, 2, 3]).cast(pl.Duration),
        }
    )
    others = [
        clicks[:2],
        clicks.with_columns(pl.col("timestamp_ms") + 1),
        clicks.with_columns(pl.col("item_id").reverse()),
        clicks.with_columns(item_id=pl.Series(["aa", "b", "c"])),
        clicks.with_columns(pl.col("price").reverse()),
        clicks.with_columns(price=pl.Series([None, 1.5, 3.0])),
        clicks.rename({"price": "cost"}),
    ]
    assert len({content_hash(log) for log in (clicks, *others)}) == 1 + len(others)


def test_a_log_is_the_same_for_every_checkpoint_and_file_type() -> None:
    clicks = pl.DataFrame(
        {"session_id": ["s", "s"], "item_id": ["a", "b"], "timestamp_ms": [1, 2], "price": [3, 4]}
    )
    same = [
        clicks.with_columns(pl.col("item_id").cast(pl.Categorical), pl.col("price").cast(str)),
        clicks.with_columns(session_id=pl.Series(["s-1", "s-2"])),
        clicks.with_columns(pl.Series(TARGET_WEIGHT, [1.0, 0.5])),
        clicks.select(reversed(clicks.columns)),
    ]
    assert {content_hash(log) for log in same} == {content_hash(clicks)}


def numbered(item_ids: str, sessions: list[str]) -> Evaluation:
    """Of sessions of one-letter items, by a catalogue that numbers them so."""
    of = sessions_of([[item_ids.index(item) for item in session] for session in sessions])
    counts = describe_log("toy", Indexed(of, Catalogue(list(item_ids)), 0, 0))
    support = np.ones(len(item_ids), dtype=np.int64)
    return evaluate("m", build_baselines(of, len(support))["markov"], of, counts, support)


def test_the_same_clicks_compare_whatever_a_catalogue_calls_them() -> None:
    sessions = ["abca", "bdb", "cad"]
    one, other = numbered("abcd", sessions), numbered("dbxca", sessions)
    assert one.ranks.target.tolist() != other.ranks.target.tolist()
    assert compare_kept(one, other, "mrr_at_20") == compare_kept(one, one, "mrr_at_20")


def test_other_clicks_never_compare_whatever_their_numbers_are() -> None:
    one, other = numbered("abcd", ["abca", "bdb"]), numbered("xbcd", ["xbcx", "bdb"])
    assert one.ranks.target.tolist() == other.ranks.target.tolist()
    with pytest.raises(ValueError, match="predicted different items"):
        compare_kept(one, other, "mrr_at_20")


def test_what_was_kept_before_targets_had_a_hash_is_read_and_compared_by_numbers(
    tmp_path: Path,
) -> None:
    path = save_evaluation(tmp_path, made())
    with np.load(path) as file:
        arrays = dict(file)
    info = json.loads(str(arrays.pop("info")))
    del info["log"]["targets_hash"]
    np.savez(path, allow_pickle=False, info=np.array(json.dumps(info)), **arrays)
    (old,) = load_evaluations([tmp_path])
    assert old.info.log.targets_hash == ""
    assert compare_kept(old, made(), "mrr_at_20").p_value == 1
    with pytest.raises(ValueError, match="the same predictions, found"):
        compare_kept(old, numbered("abcd", ["abca", "bdb"]), "mrr_at_20")


def test_an_evaluation_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    for evaluation in (made("a", epochs=2), made("b")):
        save_evaluation(tmp_path, evaluation)
    for before, after in zip(
        (made("a", epochs=2), made("b")), load_evaluations([tmp_path]), strict=True
    ):
        same_seconds = after.info.model_copy(update={"seconds": before.info.seconds})
        assert same_seconds == before.info
        assert after.figures() == before.figures()
        for field in fields(Ranks):
            found, kept = getattr(after.ranks, field.name), getattr(before.ranks, field.name)
            assert found.dtype == kept.dtype
            assert found.tolist() == kept.tolist()


def test_it_has_the_protocols_figures_and_those_of_its_lists() -> None:
    figures = made().figures()
    assert figures["predictions"] == 8
    assert figures["with_unknown_predictions"] == 10
    assert figures["coverage_at_20"] == 1  # a list of 20 holds all 5 items
    unlisted = replace(made(), listed=np.zeros(5, dtype=np.int64))
    assert "coverage_at_20" not in unlisted.figures()
    assert made().info.log.dropped_clicks == 3
    # Items 1, 0, 2, 3 with 4, 3, 3, 2 clicks begin a session: ties count against the list.
    assert made().info.first_click["mrr_at_20"] == pytest.approx((1 / 3 + 1 + 1 / 3 + 1 / 4) / 4)


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder in ("seed-1", "seed-2"):
        save_evaluation(tmp_path / folder, made("gru", epochs=1))
    save_evaluation(tmp_path / "seed-1", made("pop"))
    names = [evaluation.info.model for evaluation in load_evaluations([tmp_path])]
    assert names == ["gru (seed-1)", "pop", "gru (seed-2)"]


def test_a_baseline_that_answers_alike_beside_several_checkpoints_is_one(tmp_path: Path) -> None:
    sessions = ["abca", "bdb", "cad"]
    for folder, item_ids in (("scratch", "abcd"), ("warm", "dbca")):
        kept = numbered(item_ids, sessions)
        ties = kept.listed + (folder == "warm")  # among equal scores other items are listed
        save_evaluation(tmp_path / folder, replace(kept, listed=ties))
    assert [kept.info.model for kept in load_evaluations([tmp_path])] == ["m"]
    other = numbered("abcd", sessions)
    worse = replace(other, ranks=replace(other.ranks, rank=other.ranks.rank + 1))
    save_evaluation(tmp_path / "worse", worse)
    names = [kept.info.model for kept in load_evaluations([tmp_path])]
    assert names == ["m (scratch)", "m (worse)"]


def test_as_many_folders_are_named_as_tell_runs_apart(tmp_path: Path) -> None:
    for folder in ("gru/test", "lstm/test", "copies"):
        save_evaluation(tmp_path / folder, made("gru", epochs=1))
    shutil.copy(tmp_path / "copies/gru.evaluation.npz", tmp_path / "copies/two.evaluation.npz")
    names = [e.info.model for e in load_evaluations([tmp_path / "gru", tmp_path / "lstm"])]
    assert names == ["gru (gru/test)", "gru (lstm/test)"]
    assert len(load_evaluations([tmp_path])) == 4, "two in one folder have no folder of their own"


def test_a_folder_named_twice_counts_once(tmp_path: Path) -> None:
    save_evaluation(tmp_path / "run", made())
    assert len(load_evaluations([tmp_path, tmp_path / "run"])) == 1


def test_a_models_name_with_a_slash_is_no_folder(tmp_path: Path) -> None:
    path = save_evaluation(tmp_path, made("gru/h=100"))
    assert path.parent == tmp_path
    assert load_evaluations([tmp_path])[0].info.model == "gru/h=100"


def test_what_holds_no_evaluation_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"contains no \*\.evaluation\.npz file"):
        load_evaluations([tmp_path])
    broken = tmp_path / "x.evaluation.npz"
    broken.write_bytes(b"no archive")
    with pytest.raises(TrainError, match=r"x\.evaluation\.npz is not an evaluation"):
        load_evaluations([tmp_path])
    np.savez(broken, info=np.array("{}"))
    with pytest.raises(TrainError, match=r"x\.evaluation\.npz is not an evaluation") as caught:
        load_evaluations([tmp_path])
    assert len(str(caught.value).splitlines()) == 1


def test_a_log_without_sessions_is_described(tmp_path: Path) -> None:
    counts = describe_log("empty", Indexed(sessions_of([]), Catalogue(["a"]), 4, 2))
    assert counts == LogCounts(
        name="empty",
        sessions=0,
        clicks=0,
        first_timestamp_ms=0,
        last_timestamp_ms=0,
        dropped_clicks=4,
        dropped_sessions=2,
        targets_hash=counts.targets_hash,
    )
