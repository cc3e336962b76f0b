"""The defaults and a preset, trained on a tiny log for the same number of epochs."""

import json
from pathlib import Path

import polars as pl
import pytest

from bench.lab import defaults
from bench.lab.defaults import DefaultsSettings, run
from tests.unit.train.building import markov_clicks
from train.network.presets import PRESETS

DATASET = "rsc15-100k"


def test_defaults_and_preset_see_equally_many_clicks_and_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, log = tmp_path / "defaults.json", tmp_path / DATASET / "train.tsv.gz"
    log.parent.mkdir()
    markov_clicks(0.9, n_sessions=300, n_items=20, seed=1).select(
        SessionId="session_id", ItemId="item_id", Time=pl.col("timestamp_ms") / 1000
    ).write_csv(log, separator="\t", compression="gzip")
    monkeypatch.setenv("NEXTCLICK_DATA", str(tmp_path))
    monkeypatch.setattr(defaults, "RESULT", result)
    monkeypatch.setitem(PRESETS, DATASET, {"hidden_size": 8, "batch_size": 16, "epochs": 2})
    settings = DefaultsSettings(datasets=[DATASET], seeds=(1,))
    run(settings)
    text = result.read_text()
    rows = json.loads(text)["rows"]
    assert [row["label"] for row in rows] == ["defaults", "preset"]
    assert len({row["clicks_seen"] for row in rows}) == 1
    assert [len(row["history"]) for row in rows] == [2, 2]
    assert [row["hyperparameters"]["hidden_size"] for row in rows] == [100, 8]

    run(settings)
    assert result.read_text() == text, "what is kept is not measured again"
    monkeypatch.setitem(PRESETS, DATASET, {"hidden_size": 6, "batch_size": 16, "epochs": 2})
    run(settings)
    rows = json.loads(result.read_text())["rows"]
    assert [row["hyperparameters"]["hidden_size"] for row in rows] == [100, 6]
