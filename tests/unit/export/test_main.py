"""A checkpoint in, a bundle out; or one sentence and nothing written."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import structlog
import torch
from onnx import numpy_helper

from export import encode
from export.__main__ import ExportConfig, describe, export_bundle, main, parity_sessions
from export.graph import rank_graph, rank_int8_graph
from export.parity import random_sessions
from stream.errors import StreamError
from stream.live.rules import NETWORK_BEST
from stream.model import bundle as bundle_module
from stream.model.bundle import load_bundle
from stream.model.scorer import OnnxScorer
from train.command import TrainError
from train.data.context import ContextField
from train.data.filters import EventTypes
from train.data.sessions import Catalogue
from train.network.checkpoint import (
    Checkpoint,
    CheckpointInfo,
    Live,
    TrainingData,
    load_checkpoint,
    popular_items,
    save_checkpoint,
    weights_of,
)
from train.network.model import ModelConfig, SessionModel

N_ITEMS = 30
CONTEXT = (
    ContextField(name="event_type", kind="column", values=("view", "cart")),
    ContextField(name="gap", kind="gap", edges_s=(1.0, 2.5)),
    ContextField(name="hour", kind="hour", utc_offset_s=3600),
)
SIZES = [field.size for field in CONTEXT]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, cell="lstm", n_layers=2, context=CONTEXT)


def write_checkpoint(tmp_path: Path, n_items: int = N_ITEMS, **options: Any) -> Path:
    """A checkpoint of an untrained model."""
    torch.manual_seed(0)
    model = SessionModel(ModelConfig(n_items=n_items, hidden_size=8, **options))
    info = CheckpointInfo(
        model=model.config,
        hyperparameters={},
        training=TrainingData(
            first_timestamp_ms=1_000, last_timestamp_ms=9_000, clicks=77, sessions=20, items=n_items
        ),
        idle_timeout_s=1800,
        epoch=3,
        protocol="by hand",
        metrics={"recall_at_20": 0.5},
        history=[],
        finished=True,
        popular=popular_items(np.arange(n_items)),
        weights="weights-3.npz",
        resume="resume-3.npz",
    )
    catalogue = Catalogue([f"item-{n}" for n in range(n_items)])
    save_checkpoint(tmp_path / "checkpoint", info, catalogue, weights_of(model), {})
    return tmp_path / "checkpoint"


@pytest.fixture
def checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint(folder)


def test_the_bundle_tells_what_the_checkpoint_told(checkpoint: Checkpoint, tmp_path: Path) -> None:
    sessions = random_sessions(50, N_ITEMS, SIZES, seed=1)
    served = {
        "allowed_lateness_s": 900,
        "event_types": EventTypes(inputs=("view", "cart")),
        "max_session_length": 500,
        "live": Live(
            time_scale_s=60,
            popularity_half_life_s=7,
            excludes_seen=True,
            bias=0.5,
            sharpness=2.8,
            weights=[[0.1] * 10] * 5,
        ),
    }
    checkpoint = replace(checkpoint, info=checkpoint.info.model_copy(update=served))
    folder = export_bundle(checkpoint, tmp_path / "bundles", 4, sessions)
    bundle = load_bundle(folder)
    manifest = bundle.manifest
    assert bundle.item_ids == checkpoint.catalogue.item_ids
    assert (manifest.hidden_size, manifest.n_layers) == (8, 2)
    assert manifest.architecture == (
        "lstm, 2 layers, shared embedding, concat context event_type hour gap"
    )
    assert (manifest.state_size, manifest.query_size) == (2 * 2 * 8, 8)
    assert tuple(manifest.context) == tuple(CONTEXT)
    assert (manifest.n_items, manifest.n_recommendations) == (N_ITEMS, 4)
    assert manifest.idle_timeout_s == 1800
    assert manifest.allowed_lateness_s == 900
    assert manifest.event_types == ("view", "cart")
    assert (manifest.training.clicks, manifest.training.last_timestamp_ms) == (77, 9_000)
    assert manifest.training.max_session_length == 500
    assert manifest.live == bundle_module.Live(
        time_scale_s=60,
        popularity_half_life_s=7,
        excludes_seen=True,
        n_candidates=N_ITEMS,
        bias=0.5,
        weights=[[0.1] * 10] * 5,
        sharpness=2.8,
    )
    assert manifest.metrics is not None
    assert manifest.metrics.protocol == "by hand"
    assert manifest.metrics.figures == {"recall_at_20": 0.5}
    assert [item.item_index for item in manifest.popular] == [29, 28, 27, 26]
    assert manifest.parity.sessions == 50
    assert manifest.parity.clicks == sum(len(session.item_index) for session in sessions)
    assert 0 < manifest.parity.max_error < 1e-6
    assert 0 < manifest.parity.max_error_pytorch < 1e-6


def test_the_same_checkpoint_twice_is_one_bundle(checkpoint: Checkpoint, tmp_path: Path) -> None:
    sessions = random_sessions(20, N_ITEMS, SIZES, seed=1)
    first = export_bundle(checkpoint, tmp_path / "bundles", 4, sessions)
    assert export_bundle(checkpoint, tmp_path / "bundles", 4, sessions) == first
    assert list((tmp_path / "bundles").iterdir()) == [first]


def test_a_large_catalogue_comes_with_a_proved_graph_for_int8(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, n_items=2000))
    sessions = random_sessions(50, 2000, [], seed=1)
    bundle = load_bundle(export_bundle(checkpoint, tmp_path / "bundles", 5, sessions))
    assert bundle.rank_int8 is not None
    assert 0.999 <= bundle.manifest.parity.int8_overlap <= 1


def test_a_graph_that_reads_a_bias_is_proved_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_bias(*arguments: Any, write: Any = rank_graph) -> onnx.ModelProto:
        model: onnx.ModelProto = write(*arguments)
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(6000, "f4"), "none"))
        for node in model.graph.node:
            node.input[:] = ["none" if name == "bias" else name for name in node.input]
        return model

    live = Live(
        time_scale_s=60,
        popularity_half_life_s=7,
        excludes_seen=False,
        bias=1.0,
        sharpness=1.0,
        weights=[[0.1] * 10] * 5,
    )
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, n_items=6000))
    checkpoint = replace(checkpoint, info=checkpoint.info.model_copy(update={"live": live}))
    sessions = random_sessions(50, 6000, [], seed=1)
    bundle = load_bundle(export_bundle(checkpoint, tmp_path / "bundles", 5, sessions))
    assert bundle.manifest.parity.int8_overlap > 0.999
    assert OnnxScorer(bundle).n_candidates == NETWORK_BEST
    monkeypatch.setattr(encode, "rank_graph", without_bias)
    with pytest.raises(TrainError, match=r"rank.onnx ranks an item in a place"):
        export_bundle(checkpoint, tmp_path / "bundles", 5, sessions)


def test_a_live_list_has_its_candidates_or_as_many_as_are_published(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, n_items=200))
    weights = [[0.1] * 10] * 5
    live = Live(
        time_scale_s=60,
        popularity_half_life_s=7,
        excludes_seen=False,
        bias=0.0,
        sharpness=1.0,
        weights=weights,
    )
    checkpoint = replace(checkpoint, info=checkpoint.info.model_copy(update={"live": live}))
    for k, expected in ((5, NETWORK_BEST), (150, 150)):
        sessions = random_sessions(5, 200, [], seed=1)
        manifest = load_bundle(export_bundle(checkpoint, tmp_path / "out", k, sessions)).manifest
        assert manifest.live is not None
        assert manifest.live.n_candidates == expected


def test_a_graph_for_int8_that_lists_other_items_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another_model(
        rows: np.ndarray, bias: np.ndarray, k: int, *rest: Any, write: Any = rank_int8_graph
    ) -> Any:
        return write(np.roll(rows, 1, axis=0), bias, k, *rest)

    monkeypatch.setattr(encode, "rank_int8_graph", of_another_model)
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, n_items=2000))
    sessions = random_sessions(50, 2000, [], seed=1)
    with structlog.testing.capture_logs() as logged:
        folder = export_bundle(checkpoint, tmp_path / "bundles", 5, sessions)
    assert not (folder / "rank_int8.onnx").exists()
    assert load_bundle(folder).manifest.parity.int8_overlap == 0
    (event,) = (line for line in logged if line["event"] == "int8_left_out")
    assert event["overlap"] < event["expected"] == 0.999


def test_a_failed_check_writes_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = OnnxScorer.encode

    def drifting_encode(
        scorer: OnnxScorer, item_index: np.ndarray, context: np.ndarray, state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        query, after = undisturbed(scorer, item_index, context, state)
        return query, after + np.float32(1e-4)

    monkeypatch.setattr(OnnxScorer, "encode", drifting_encode)
    with pytest.raises(TrainError, match=r"after click 1 .* differ by 0.0001"):
        export_bundle(
            checkpoint, tmp_path / "bundles", 4, random_sessions(20, N_ITEMS, SIZES, seed=1)
        )
    assert not (tmp_path / "bundles").exists()


def test_a_context_column_that_no_click_can_have_is_one_sentence(tmp_path: Path) -> None:
    item_id = ContextField(name="item_id", kind="column", values=("item-1",))
    checkpoint = load_checkpoint(write_checkpoint(tmp_path, context=(item_id,)))
    with pytest.raises(StreamError, match=r"checkpoint: context field 'item_id' of kind column"):
        export_bundle(checkpoint, tmp_path / "bundles", 4, [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "gru, shared embedding"),
        ({"cell": "window"}, "window, 3 clicks, shared embedding"),
        (
            {"residual": True, "normalise": 12.0, "embedding": "one-hot"},
            "gru, one-hot embedding, residual, cosine scores",
        ),
        (
            {"context": CONTEXT, "input_context": "multiply", "transition_context": "matrices"},
            "gru, shared embedding, multiply context event_type hour, matrices context gap",
        ),
    ],
)
def test_a_bundle_says_in_words_what_its_model_is(options: dict[str, Any], words: str) -> None:
    assert describe(ModelConfig(n_items=N_ITEMS, **options)) == words


def test_more_recommendations_than_items_is_one_sentence(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(
        StreamError, match="n_recommendations is 31, but the catalogue has only 30 items"
    ):
        export_bundle(checkpoint, tmp_path / "bundles", 31, [])


def test_the_newest_sessions_of_a_log_come_first_and_random_ones_fill_up(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    log = tmp_path / "clicks.csv"
    log.write_text(
        "session_id,item_id,timestamp_ms,event_type\n"
        "old,item-1,1000,cart\nold,item-2,2000,view\n"
        "new,item-3,5000,\nnew,unheard-of,5500,view\nnew,item-4,6000,purchase\n"
    )
    config = ExportConfig(checkpoint=checkpoint.folder, clicks=log)
    sessions = parity_sessions(config, checkpoint)
    assert len(sessions) == 1000
    assert [session.item_index.tolist() for session in sessions[:2]] == [[1, 2], [3, 4]]
    assert [session.context.tolist() for session in sessions[:2]] == [
        [[3, 0, 3], [2, 2, 3]],
        [[0, 0, 3], [1, 2, 3]],
    ]


def test_a_log_that_proves_nothing_is_one_sentence(checkpoint: Checkpoint, tmp_path: Path) -> None:
    log = tmp_path / "clicks.csv"
    log.write_text("session_id,item_id,timestamp_ms,event_type\ns,new,1000,\ns,newer,2000,\n")
    config = ExportConfig(checkpoint=checkpoint.folder, clicks=log)
    with pytest.raises(TrainError, match="has no session with at least two clicks"):
        parity_sessions(config, checkpoint)


def test_a_log_without_the_columns_of_the_context_is_one_sentence(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = tmp_path / "clicks.csv"
    log.write_text("session_id,item_id,timestamp_ms\ns,item-1,1000\ns,item-2,2000\n")
    assert run_main(monkeypatch, "--checkpoint", folder, "--clicks", log) == 2
    assert f"context=event_type: {log} has no such column" in capsys.readouterr().err


def test_no_log_means_a_thousand_random_sessions(checkpoint: Checkpoint) -> None:
    assert len(parity_sessions(ExportConfig(checkpoint=checkpoint.folder), checkpoint)) == 1000


def run_main(monkeypatch: pytest.MonkeyPatch, *flags: object) -> int:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, flags)])
    try:
        return main()
    finally:
        structlog.reset_defaults()  # the log goes to this test's stderr


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("checkpoint.json", "contains no checkpoint: checkpoint.json is missing"),
        ("items.txt", "items.txt cannot be read"),
        ("weights-3.npz", "weights-3.npz cannot be read"),
    ],
)
def test_a_bad_checkpoint_is_exit_code_2_and_one_sentence(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    sentence: str,
) -> None:
    (folder / file).unlink()
    code = run_main(monkeypatch, "--checkpoint", folder, "--out", tmp_path / "bundles")
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "bundles").exists()


def test_a_missing_flag_and_a_bad_log_are_exit_code_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch) == 2
    assert capsys.readouterr().err == "--checkpoint is missing\n"
    assert run_main(monkeypatch, "--checkpoint", folder, "--clicks", folder / "no.csv") == 2
    assert "no.csv" in capsys.readouterr().err


def test_the_command_prints_the_folder_and_nothing_else_on_stdout(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "bundles"
    flags = ["--checkpoint", folder, "--out", root, "--n-recommendations", 4]
    assert run_main(monkeypatch, *flags) == 0
    out, err = capsys.readouterr()
    (bundle,) = root.iterdir()
    assert out == f"{bundle}\n"
    assert load_bundle(bundle).manifest.parity.sessions == 1000
    (line,) = err.splitlines()
    assert "parity_checked" in line
