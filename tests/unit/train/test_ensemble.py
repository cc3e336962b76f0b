from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.train.fit.test_loop import SMALL, a_log
from tests.unit.train.network.test_model import FIELDS, a_model
from train.__main__ import main
from train.command import TrainError
from train.data.filters import EventTypes
from train.ensemble import joined, write_ensemble
from train.fit.loop import Schedule, fit
from train.measure.predictor import ModelPredictor
from train.measure.ranking import rank_targets
from train.network.checkpoint import Checkpoint, Live, load_checkpoint
from train.network.model import SessionModel

CLICKS = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6], [16, 0, 0, 8]])


def scores_after(model: SessionModel) -> list[Tensor]:
    """Of the whole catalogue after each click of three sessions."""
    context = torch.zeros(len(CLICKS), 0, dtype=torch.int32)
    state, found = model.initial_state(len(CLICKS)), []
    for click in CLICKS.T:
        query, state = model.encode(click, context, state)
        found.append(model.scores(query))
    return found


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"cell": "rnn", "n_layers": 3, "residual": True},
        {"cell": "lstm", "n_layers": 2, "embedding": "separate"},
        {"embedding": "one-hot", "n_layers": 2},
    ],
    ids=str,
)
def test_the_scores_of_an_ensemble_are_the_sum_of_its_members(change: dict[str, Any]) -> None:
    members = [a_model(**change, hidden_size=size) for size in (6, 4, 6)]
    of_members = zip(*map(scores_after, members), strict=True)
    for found, parts in zip(scores_after(joined(members)), of_members, strict=True):
        torch.testing.assert_close(found, sum(parts))


def test_cosines_stay_cosines() -> None:
    member = a_model(normalise=8.0)
    for found, expected in zip(
        scores_after(joined([member, member])), scores_after(member), strict=True
    ):
        torch.testing.assert_close(found, expected)


def trained(folder: Path, seed: int, **change: Any) -> Checkpoint:
    log = a_log(predictability=0.6)
    fit(log, SMALL.model_copy(update={"seed": seed, **change}), Schedule(epochs=2), folder)
    return load_checkpoint(folder)


def test_an_ensemble_is_a_checkpoint_like_any_other(tmp_path: Path) -> None:
    folders = [tmp_path / "1", tmp_path / "2"]
    members = [trained(folder, seed) for seed, folder in enumerate(folders, 1)]
    out = tmp_path / "both"
    assert main(["ensemble", "--checkpoints", ",".join(map(str, folders)), "--out", str(out)]) == 0

    both = load_checkpoint(out)
    assert both.info.model.hidden_size == 2 * SMALL.hidden_size
    log = a_log(predictability=0.6)
    assert log.validation is not None
    ranks = rank_targets(ModelPredictor(both.model), log.validation, len(log.catalogue))
    assert len(ranks)
    clicks, no_context = torch.tensor([1, 2]), torch.zeros(2, 0, dtype=torch.int32)
    query, *parts = (
        checkpoint.model.encode(clicks, no_context, checkpoint.model.initial_state(2))[0]
        for checkpoint in (both, *members)
    )
    torch.testing.assert_close(query, torch.cat(parts, dim=1))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cell": "lstm"}, "has cell=lstm"),
        ({"n_layers": 2}, "has n_layers=2"),
        ({"normalise": 12.0}, "has normalise=12.0"),
    ],
)
def test_other_architectures_do_not_go_together(
    tmp_path: Path, change: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / "first", tmp_path / "other"]
    trained(folders[0], 1)
    trained(folders[1], 2, **change)
    out = tmp_path / "out"
    assert main(["ensemble", "--checkpoints", ",".join(map(str, folders)), "--out", str(out)]) == 2
    assert f"{folders[1]} {sentence}" in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize("normalise", [16.0, 0.0])
def test_live_settings_hold_for_the_mean_of_cosines_alone(tmp_path: Path, normalise: float) -> None:
    live = Live(
        time_scale_s=60,
        popularity_half_life_s=7,
        excludes_seen=True,
        bias=0.5,
        sharpness=2.0,
        weights=[[1.0]],
    )
    members = [trained(tmp_path / str(seed), seed, normalise=normalise) for seed in (1, 2)]
    members = [replace(m, info=m.info.model_copy(update={"live": live})) for m in members]
    write_ensemble(members, tmp_path / "out")
    assert load_checkpoint(tmp_path / "out").info.live == (live if normalise else None)


def test_an_ensemble_cannot_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [trained(tmp_path / str(seed), seed) for seed in (1, 2)]
    write_ensemble(members, tmp_path / "out")
    assert main(["fit", "--clicks", "no.csv", "--out", str(tmp_path / "out"), "--resume"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"{tmp_path / 'out'} is an ensemble, which has no training to resume")


def test_one_folder_is_no_ensemble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensemble", "--checkpoints", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "at least 2" in capsys.readouterr().err


def test_other_items_and_models_with_context_are_refused(tmp_path: Path) -> None:
    first = trained(tmp_path / "first", 1)
    items = first.catalogue.item_ids
    others = replace(first, catalogue=replace(first.catalogue, item_ids=items[::-1]))
    with pytest.raises(TrainError, match="different items"):
        write_ensemble([first, others], tmp_path / "out")
    for name, value in (("idle_timeout_s", 60), ("event_types", EventTypes(column="kind"))):
        other = replace(first, info=first.info.model_copy(update={name: value}))
        with pytest.raises(TrainError, match=f"has {name}=.* in the same way"):
            write_ensemble([first, other], tmp_path / "out")
    config = first.info.model.model_copy(update={"context": FIELDS})
    seeing = replace(first, info=first.info.model_copy(update={"model": config}))
    with pytest.raises(TrainError, match="has context: only models without"):
        write_ensemble([first, seeing], tmp_path / "out")
