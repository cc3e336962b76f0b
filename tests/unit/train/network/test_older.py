"""Checkpoints of version 0.1.0: `checkpoint_0_1_0` was written by commit 8ec5a42."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch

from tests.unit.train.building import markov_clicks
from train.__main__ import main
from train.command import TrainError
from train.network.checkpoint import load_checkpoint

OLDER = Path(__file__).parent / "checkpoint_0_1_0"
QUERY = [
    [-5.81869, 2.98251, 2.92644, -5.44825],
    [-8.48793, -2.55795, 1.16252, -1.02976],
]
"""Of two sessions of two clicks each, computed by that commit."""


def test_a_checkpoint_of_0_1_0_computes_what_it_computed_then() -> None:
    checkpoint = load_checkpoint(OLDER)
    assert checkpoint.info.model.normalise == 9.0  # a switch then, with a temperature
    assert checkpoint.info.allowed_lateness_s == 600
    model, context = checkpoint.model, torch.tensor([[3, 0], [2, 5]], dtype=torch.int32)
    state = model.initial_state(2)
    with torch.inference_mode():
        for clicks in ([1, 2], [3, 4]):
            query, state = model.encode(torch.tensor(clicks), context, state)
    torch.testing.assert_close(query, torch.tensor(QUERY), atol=2e-5, rtol=0)


def test_a_training_of_0_1_0_is_resumed(tmp_path: Path) -> None:
    shutil.copytree(OLDER, tmp_path / "out")
    log = markov_clicks(0.9, n_sessions=40, n_items=12, seed=1)
    log = log.with_columns(event_type=pl.Series(["view", "cart"] * (len(log) // 2)))
    log.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "preset.json").write_text(
        '{"momentum": 0.1, "order": "random", "sample_alpha": 0.5, "initial_accumulator": 0}'
    )
    words = [
        *("fit", "--clicks", str(tmp_path / "log.parquet"), "--out", str(tmp_path / "out")),
        *("--resume", "--epochs", "3", "--preset", str(tmp_path / "preset.json")),
        *("--hidden-size", "4", "--n-negatives", "8", "--batch-size", "8", "--normalise", "9"),
        *("--context", "event_type,gap", "--input-context", "multiply", "--idle-timeout-s", "1800"),
        # The defaults of 0.1.0:
        *("--loss", "bpr-max", "--bptt", "1", "--learning-rate", "0.07"),
        *("--dropout-embedding", "0", "--dropout-hidden", "0"),
    ]
    assert main(words) == 0
    history = load_checkpoint(tmp_path / "out").info.history
    assert [record.epoch for record in history] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "feed_forward",
            True,
            "model.feed_forward is True, expected False: this version",
        ),
        ("window", 5, "model.window is 5, expected 3"),
        ("transition_context", "decay", r"model.transition_context: .* \(found 'decay'\)"),
    ],
)
def test_a_setting_that_is_gone_is_refused_by_name(
    tmp_path: Path, name: str, value: object, sentence: str
) -> None:
    shutil.copytree(OLDER, tmp_path / "out")
    file = tmp_path / "out" / "checkpoint.json"
    info = json.loads(file.read_text())
    info["model"][name] = value
    file.write_text(json.dumps(info))
    with pytest.raises(TrainError, match=f"checkpoint.json: {sentence}"):
        load_checkpoint(tmp_path / "out")


def test_a_run_with_a_setting_that_is_gone_is_read_and_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(OLDER, tmp_path / "out")
    file = tmp_path / "out" / "checkpoint.json"
    info = json.loads(file.read_text())
    info["hyperparameters"]["clip_norm"] = 1.0
    file.write_text(json.dumps(info))
    assert load_checkpoint(tmp_path / "out").info.hyperparameters["clip_norm"] == 1.0
    assert main(["fit", "--clicks", "none.csv", "--out", str(tmp_path / "out"), "--resume"]) == 2
    assert "was trained with clip_norm=1.0, which" in capsys.readouterr().err.splitlines()[-1]
