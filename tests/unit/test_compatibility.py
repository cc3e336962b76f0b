"""Files that 8ec5a42 wrote are read by today's code (see tests/compatibility/README.md)."""

import base64
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from export.__main__ import main as export_main
from stream.model.bundle import load_bundle
from stream.model.scorer import OnnxScorer
from stream.position import POSITION_KEY, decode_position
from stream.session import LastOutcome, decode_state
from train.__main__ import main as train_main
from train.data.clicks import read_clicks
from train.network.checkpoint import load_checkpoint

OLD = Path(__file__).parents[1] / "compatibility/8ec5a42"
FIT = [
    *("fit", "--clicks", str(OLD / "clicks.parquet"), "--idle-timeout-s", "1800"),
    # What that version took where nothing was said.
    *("--embedding", "separate", "--hidden-size", "8", "--bptt", "1", "--batch-size", "16"),
    *("--n-negatives", "32", "--dropout-embedding", "0", "--dropout-hidden", "0"),
    *("--loss", "bpr-max", "--learning-rate", "0.07"),
]
CONTEXT = ["--context", "event_type,hour,gap", "--input-context", "multiply"]

both = pytest.mark.parametrize("name", ["plain", "context"])


def check_lists(bundle_folder: Path, expected: Path) -> None:
    """The bundle's lists, three steps of four sessions, are those that stand in the file."""
    bundle = load_bundle(bundle_folder)
    scorer = OnnxScorer(bundle)
    state = np.zeros((4, bundle.manifest.state_size), np.float32)
    for step in json.loads(expected.read_text()):
        context = np.array(step["context"], np.int32).reshape(4, len(bundle.manifest.context))
        query, state = scorer.encode(np.array(step["item_index"]), context, state)
        top_index, top_score = scorer.rank(query)
        assert top_index.tolist() == step["top_index"]
        np.testing.assert_allclose(top_score, step["top_score"], atol=1e-5)


@both
def test_a_bundle_gives_its_lists(name: str) -> None:
    check_lists(OLD / name / "bundle", OLD / name / "lists.json")


@both
def test_a_checkpoint_is_evaluated_as_before(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = OLD / name / "checkpoint"
    words = ["--checkpoint", str(checkpoint), "--clicks", str(OLD / "clicks.parquet")]
    assert train_main(["evaluate", *words]) == 0
    found = json.loads(capsys.readouterr().out)["figures"]["model"]
    before = json.loads((OLD / name / "evaluation.json").read_text())["figures"]["model"]
    for figure in ("predictions", "recall_at_20", "mrr_at_20"):
        assert found[figure] == pytest.approx(before[figure], abs=1e-6)


@both
def test_a_checkpoint_is_exported_to_a_bundle_with_the_same_lists(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--checkpoint", str(OLD / name / "checkpoint"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["export", *words])
    assert export_main() == 0
    (folder,) = tmp_path.iterdir()
    check_lists(folder, OLD / name / "lists.json")


@both
def test_a_checkpoint_is_where_a_new_training_begins(name: str, tmp_path: Path) -> None:
    before = load_checkpoint(OLD / name / "checkpoint")
    more = CONTEXT if name == "context" else []
    warm = ["--warm-start", str(before.folder), "--out", str(tmp_path / "out"), "--epochs", "1"]
    assert train_main([*FIT, *more, *warm]) == 0
    after = load_checkpoint(tmp_path / "out")
    assert after.catalogue.item_ids == before.catalogue.item_ids
    assert after.info.model == before.info.model
    assert after.info.metrics["recall_at_20"] > 0.8, "random weights reach half of that"


def test_a_training_goes_on(tmp_path: Path) -> None:
    out, preset = tmp_path / "out", tmp_path / "defaults-of-0.1.0.json"
    shutil.copytree(OLD / "plain/checkpoint", out)
    learning = {"order": "random", "sample_alpha": 0.5, "momentum": 0, "initial_accumulator": 0}
    preset.write_text(json.dumps({**learning, "normalise": 0, "patience": 0}))
    go_on = ["--epochs", "4", "--preset", str(preset), "--resume"]
    assert train_main([*FIT, "--out", str(out), *go_on]) == 0
    history = load_checkpoint(out).info.history
    assert [record.epoch for record in history] == [1, 2, 3, 4]
    assert history[:3] == load_checkpoint(OLD / "plain/checkpoint").info.history


def test_sessions_and_positions_in_a_changelog_are_decoded() -> None:
    bundle = load_bundle(OLD / "context/bundle")
    sent: dict[str, dict[str, str]] = {}
    """Items by event id, so that a repeated click counts once."""
    for line in (OLD / "clicks.jsonl").read_text().splitlines():
        _, _, session_id, value = json.loads(line)
        if value != "{":
            click = json.loads(value)
            sent.setdefault(session_id, {})[click["event_id"]] = click["item_id"]
    states, positions = {}, {}
    for line in (OLD / "changelog.jsonl").read_text().splitlines():
        partition, _, key, value = json.loads(line)
        if base64.b64decode(key) == POSITION_KEY:
            positions[partition] = decode_position(base64.b64decode(value))
        else:
            states[base64.b64decode(key).decode()] = decode_state(base64.b64decode(value))
    assert {p: position.next_offset for p, position in positions.items()} == {0: 89, 1: 77}
    assert states.keys() == sent.keys()
    for name, state in states.items():
        trail = [click.item_id for click in state.trail]
        assert trail == [*sent[name].values()][-len(trail) :]  # an idle gap begins a new one
        assert state.n_clicks == len(trail)
        assert state.bundle_id == bundle.manifest.bundle_id
        assert state.model_state.size == bundle.manifest.state_size
        assert np.isfinite(state.model_state).all()
        assert state.top_index.size == bundle.manifest.n_recommendations
        assert state.last_outcome in (LastOutcome.MODEL, LastOutcome.UNKNOWN_ITEM)
    assert any(click.context for state in states.values() for click in state.trail)


def test_a_collected_log_is_read_as_the_stream_saw_it() -> None:
    log = read_clicks(OLD / "collected")
    assert (len(log.clicks), log.rejected) == (164, {})
    assert log.clicks.group_by("session_id").len().height == 30
    assert log.clicks["event_type"].null_count() > 0
