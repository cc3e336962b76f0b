import json
from pathlib import Path

import numpy as np
import pytest
import torch

from train.command import TrainError
from train.data.sessions import Catalogue
from train.network.checkpoint import (
    POPULAR_ITEMS,
    CheckpointInfo,
    EpochRecord,
    TrainingData,
    load_checkpoint,
    popular_items,
    save_checkpoint,
    weights_of,
)
from train.network.model import ModelConfig, SessionModel

# Ids that a careless reader of lines would cut or join.
ITEM_IDS = ["a", "two words", "next\x85line", "line\u2028separator", "é", "6"]


def a_model() -> SessionModel:
    torch.manual_seed(3)
    return SessionModel(ModelConfig(n_items=len(ITEM_IDS), hidden_size=4))


def an_info(epoch: int = 1) -> CheckpointInfo:
    return CheckpointInfo(
        model=ModelConfig(n_items=len(ITEM_IDS), hidden_size=4),
        hyperparameters={"learning_rate": 0.05},
        training=TrainingData(
            first_timestamp_ms=0, last_timestamp_ms=9, clicks=12, sessions=3, items=6
        ),
        idle_timeout_s=1800,
        epoch=epoch,
        protocol="in words",
        metrics={"recall_at_20": 0.5},
        history=[
            EpochRecord(epoch=epoch, loss=0.25, clicks_per_second=10.0, seconds=1.2, metrics={})
        ],
        finished=False,
        popular=popular_items(np.array([1, 7, 7, 0, 2, 1])),
        weights=f"weights-{epoch}.npz",
        resume=f"resume-{epoch}.npz",
    )


def save(folder: Path, model: SessionModel, epoch: int = 1) -> None:
    resume = {"velocity": np.arange(epoch + 1.0)}
    save_checkpoint(folder, an_info(epoch), Catalogue(ITEM_IDS), weights_of(model), resume)


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    model = a_model()
    save(tmp_path / "new" / "folder", model)
    loaded = load_checkpoint(tmp_path / "new" / "folder")
    assert loaded.info == an_info()
    assert loaded.catalogue.item_ids == ITEM_IDS
    assert not loaded.model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert loaded.resume_arrays()["velocity"].tolist() == [0.0, 1.0]


def test_the_next_epoch_replaces_the_last_one_and_its_files(tmp_path: Path) -> None:
    save(tmp_path, a_model(), epoch=1)
    save(tmp_path, a_model(), epoch=2)
    assert load_checkpoint(tmp_path).info.epoch == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "checkpoint.json",
        "items.txt",
        "resume-2.npz",
        "weights-2.npz",
    ]


def test_a_kill_before_the_last_step_of_writing_leaves_the_epoch_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, a_model(), epoch=1)
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target.name == "checkpoint.json":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, a_model(), epoch=2)
    loaded = load_checkpoint(tmp_path)
    assert loaded.info.epoch == 1
    assert len(loaded.resume_arrays()["velocity"]) == 2


def test_an_array_that_would_need_pickle_is_refused(tmp_path: Path) -> None:
    save(tmp_path, a_model())
    np.savez(tmp_path / "weights-1.npz", item_embedding=np.array([{"run": "me"}], dtype=object))
    with pytest.raises(TrainError, match=r"weights-1\.npz cannot be read"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "value", "sentence"),
    [
        ("float32", np.nan, r"weights-1\.npz: item_embedding.* contains NaN or infinity"),
        ("float64", 0.0, r"item_embedding.* is float64, expected float32"),
        ("str", "x", r"item_embedding.* is <U1, expected float32"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, dtype: str, value: object, sentence: str
) -> None:
    save(tmp_path, a_model())
    path = tmp_path / "weights-1.npz"
    with np.load(path) as file:
        weights = dict(file)
    (name,) = (name for name in weights if name.startswith("item_embedding"))
    weights[name] = np.full(weights[name].shape, value, dtype=dtype)
    np.savez(path, **weights)
    with pytest.raises(TrainError, match=sentence):
        load_checkpoint(tmp_path)


def test_a_size_that_no_model_has_is_refused(tmp_path: Path) -> None:
    save(tmp_path, a_model())
    info = json.loads((tmp_path / "checkpoint.json").read_text())
    info["model"]["hidden_size"] = -1
    (tmp_path / "checkpoint.json").write_text(json.dumps(info))
    with pytest.raises(TrainError, match=r"checkpoint\.json: model\.hidden_size: Input should"):
        load_checkpoint(tmp_path)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=f"{tmp_path} contains no checkpoint"):
        load_checkpoint(tmp_path)


def test_another_number_of_items_is_refused_with_both_counts(tmp_path: Path) -> None:
    save(tmp_path, a_model())
    (tmp_path / "items.txt").write_text("a\nb\n")
    with pytest.raises(TrainError, match=r"has 2 lines, .* says n_items=6"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("format", 1), ("architecture", "transformer"), ("surprise", 1)]
)
def test_a_field_this_version_does_not_know_is_refused_by_name(
    tmp_path: Path, field: str, value: object
) -> None:
    save(tmp_path, a_model())
    info = json.loads((tmp_path / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps(info | {field: value}))
    with pytest.raises(TrainError, match=f"checkpoint.json: {field}: "):
        load_checkpoint(tmp_path)


def test_weights_of_another_shape_are_refused_with_both_shapes(tmp_path: Path) -> None:
    other = SessionModel(ModelConfig(n_items=len(ITEM_IDS), hidden_size=5))
    save(tmp_path, other)
    with pytest.raises(TrainError, match=r"item_embedding has shape \(6, 5\), .* \(6, 4\)"):
        load_checkpoint(tmp_path)


def test_weights_with_an_array_too_few_are_refused(tmp_path: Path) -> None:
    save(tmp_path, a_model())
    np.savez(tmp_path / "weights-1.npz", output_bias=np.zeros(6))
    with pytest.raises(TrainError, match=r"contains \['output_bias'\], expected"):
        load_checkpoint(tmp_path)


def test_the_popularity_list_is_ordered_by_support_then_index() -> None:
    popular = popular_items(np.array([1, 7, 7, 0, 2, 1]))
    assert [(item.item_index, item.score) for item in popular] == [
        (1, 7.0),
        (2, 7.0),
        (4, 2.0),
        (0, 1.0),
        (5, 1.0),
        (3, 0.0),
    ]
    assert len(popular_items(np.ones(POPULAR_ITEMS + 5, dtype=np.int64))) == POPULAR_ITEMS
