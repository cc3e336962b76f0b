"""``python -m bench.live.offline`` and ``bench.live.partitions`` on a log that is made here."""

import json
from pathlib import Path

import polars as pl
import pytest

from bench.live import offline, partitions
from bench.live.offline import CHOSEN, OfflineSettings, run, summary
from bench.live.partitions import PartitionsSettings
from tests.unit.train.building import markov_clicks
from train.command import TrainError
from train.network.checkpoint import load_checkpoint


def test_a_row_is_the_mean_of_its_networks_and_their_gain() -> None:
    figures = [(0.5, 0.2, 0.52, 0.19), (0.6, 0.3, 0.63, 0.3)]
    runs = [
        {
            "log": "a",
            "seed": seed,
            "predictions": 7,
            "chosen": {"bias": 0.1 * seed},
            "figures": {
                "static": {"recall_at_20": r, "mrr_at_20": m},
                "bias": {"recall_at_20": own_r, "mrr_at_20": own_m},
            },
        }
        for seed, (r, m, own_r, own_m) in enumerate(figures, start=1)
    ]
    found = summary(runs)
    assert found["predictions"] == {"a": 7}
    assert found["chosen"] == [
        {"log": "a", "seed": 1, "bias": 0.1},
        {"log": "a", "seed": 2, "bias": 0.2},
    ]
    assert [row["name"] for row in found["rows"]] == ["static", "bias"]
    assert found["rows"][1] == {
        "log": "a",
        "name": "bias",
        "recall_at_20": 0.575,
        "mrr_at_20": 0.245,
        "recall_at_20_gain": 0.025,
        "mrr_at_20_gain": -0.005,
        "recall_at_20_by_run": [0.52, 0.63],
        "mrr_at_20_by_run": [0.19, 0.3],
    }


def test_networks_are_trained_once_and_measured_on_the_test_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "synthetic").mkdir()
    log = markov_clicks(0.8, 360, 30, 1)
    log = log.select(SessionId="session_id", ItemId="item_id", Time=pl.col("timestamp_ms") / 1_000)
    for part, clicks in (("train", log[:1_800]), ("test", log[1_800:])):
        clicks.write_csv(
            tmp_path / "synthetic" / f"{part}.tsv.gz", separator="\t", compression="gzip"
        )
    monkeypatch.setenv("NEXTCLICK_DATA", str(tmp_path))
    monkeypatch.setattr(offline, "BUILD", tmp_path / "runs")
    monkeypatch.setattr(partitions, "BUILD", tmp_path / "runs")
    settings = OfflineSettings(
        logs=("synthetic",), seeds=(1, 2), checkpoints=tmp_path / "c", out=tmp_path / "kept.json"
    )
    run(settings)
    kept = json.loads(settings.out.read_text())
    assert [row["name"] for row in kept["rows"]] == ["static", "bias", "counts", "live"]
    assert kept["predictions"] == {"synthetic": 300}
    for seed, chosen in zip((1, 2), kept["chosen"], strict=True):
        checkpoint = load_checkpoint(tmp_path / "c" / f"synthetic-{seed}")
        assert checkpoint.info.hyperparameters["seed"] == chosen["seed"] == seed
        assert chosen.keys() == {"log", "seed", *CHOSEN}
    by_partition = PartitionsSettings(
        partitions=(4,), fitted=settings.out, checkpoints=tmp_path / "c", out=tmp_path / "by.json"
    )
    partitions.run(by_partition)
    by = json.loads(by_partition.out.read_text())
    assert [row["name"] for row in by["rows"]] == ["static", "bias of 1", "bias of 4"]
    figures = ("recall_at_20_by_run", "mrr_at_20_by_run")
    for ours, theirs in zip(by["rows"][:2], kept["rows"][:2], strict=True):
        assert [ours[of] for of in figures] == [theirs[of] for of in figures], "one partition"
    assert by["predictions"] == kept["predictions"]
    (tmp_path / "synthetic" / "test.tsv.gz").unlink()  # nothing is measured again
    run(settings)
    assert json.loads(settings.out.read_text()) == kept


def test_partitions_are_measured_behind_the_networks(tmp_path: Path) -> None:
    settings = PartitionsSettings(fitted=tmp_path / "none.json")
    with pytest.raises(TrainError, match=r"run python -m bench\.live\.offline first"):
        partitions.run(settings)
