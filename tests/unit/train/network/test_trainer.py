"""A step that touches only its own rows is the step of automatic differentiation over them all."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.unit.train.building import sessions_of
from train.baselines.popularity import item_support
from train.data.context import ContextField
from train.data.sessions import Sessions
from train.network.batches import session_parallel
from train.network.hyperparameters import Hyperparameters
from train.network.losses import bpr_max, cross_entropy
from train.network.trainer import Trainer

N_ITEMS = 12
GAP = ContextField(name="gap", kind="gap", edges_s=(1.0,))
SESSIONS = sessions_of([[0, 1, 2], [2, 2, 5], [7, 1, 0], [3, 4, 5], [9, 0, 1]])


def a_trainer(**change: Any) -> Trainer:
    options: dict[str, Any] = {
        "hidden_size": 4,
        "n_negatives": 0,
        "batch_size": 5,
        "optimiser": "sgd",
        "learning_rate": 1.0,
        "loss": "bpr-max",
        "bptt": 1,
        "order": "random",
        "momentum": 0.0,
        "dropout_embedding": 0.0,
        "dropout_hidden": 0.0,
    }
    hyperparameters = Hyperparameters(**options | change)
    return Trainer(hyperparameters, item_support(SESSIONS, N_ITEMS))


def whole_gradient(trainer: Trainer, sessions: Sessions) -> dict[str, torch.Tensor]:
    """Gradients of the first step over whole tables, by nothing but torch."""
    h, model = trainer.hyperparameters, trainer.model
    seed = np.random.SeedSequence([h.seed, 1]).spawn(3)[1]
    step = next(session_parallel(sessions, h.batch_size, np.random.default_rng(seed)))
    state = model.initial_state(h.batch_size)
    click, target = (torch.from_numpy(a) for a in (step.item_index, step.target))
    query, _ = model.encode(click, torch.from_numpy(step.context), state)
    scores = model.scores(query)
    if h.loss == "softmax":
        losses = cross_entropy(scores, target)
    else:
        candidates = torch.from_numpy(np.unique(step.target))
        column = torch.searchsorted(candidates, target)
        losses = bpr_max(scores[:, candidates], column, h.bpreg, h.elu)
    (losses * torch.from_numpy(step.weight)).mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize(
    "change",
    [
        {"embedding": "separate"},
        {"embedding": "shared"},
        {"embedding": "one-hot"},
        {"embedding": "shared", "loss": "softmax"},
        {"embedding": "separate", "loss": "softmax"},
        {"embedding": "shared", "cell": "lstm", "residual": True, "normalise": 12.0},
    ],
    ids=str,
)
def test_a_step_moves_every_weight_against_its_gradient(change: dict[str, Any]) -> None:
    trainer = a_trainer(**change)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    expected = whole_gradient(trainer, SESSIONS)
    for parameter in trainer.model.parameters():
        parameter.grad = None
    ticks = iter([0.0, 0.0, 1.0, 1.0, 1.0])  # the deadline comes after one step
    trainer.train_epoch(SESSIONS, 1, deadline=0.5, clock=lambda: next(ticks))
    for name, parameter in trainer.model.named_parameters():
        moved = before[name] - parameter.detach()
        torch.testing.assert_close(moved, expected[name], atol=2e-6, rtol=1e-4, msg=name)


def test_a_target_of_weight_zero_teaches_nothing() -> None:
    half = SESSIONS.target_weight.copy()
    half[SESSIONS.start[:-1] + 1] = 0  # the second click of every session
    sessions = Sessions(
        SESSIONS.item_index,
        SESSIONS.timestamp_ms,
        SESSIONS.start,
        SESSIONS.session_id,
        SESSIONS.context,
        half,
    )
    trainer = a_trainer()
    before = trainer.state()
    ticks = iter([0.0, 0.0, 1.0, 1.0, 1.0])
    trainer.train_epoch(sessions, 1, deadline=0.5, clock=lambda: next(ticks))
    assert all((array == before[n]).all() for n, array in trainer.state().items() if n != "steps")


def test_a_gradient_flows_back_through_a_window_and_no_further() -> None:
    """With bptt=2 the first click's embedding learns from the second click's target."""

    def moved(bptt: int) -> float:
        trainer = a_trainer(bptt=bptt, batch_size=1, n_negatives=4, embedding="separate")
        sessions = sessions_of([[0, 1, 2]])
        weight = trainer.model.input_embedding
        start = weight.detach().clone()
        trainer.train_epoch(sessions, 1)
        return F.mse_loss(weight.detach()[0], start[0]).item()

    assert moved(2) != pytest.approx(moved(1), rel=1e-3)


@pytest.mark.parametrize("elu", [0.0, 0.5])
@pytest.mark.parametrize("loss", ["cross-entropy", "bpr-max"])
def test_a_session_is_never_told_that_its_own_next_clicks_are_wrong(loss: str, elu: float) -> None:
    """Each target of the long session rises; told so, one falls as it is wrong in two rows."""
    trainer = a_trainer(loss=loss, bpreg=0.0, elu=elu, bptt=3, batch_size=2, embedding="separate")
    before = trainer.state()["output_bias"]
    # The second lane's one click has the only target that is a negative of the first lane.
    trainer.train_epoch(sessions_of([[0, 1, 2, 3], [4, 5]]), 1)
    change = trainer.state()["output_bias"] - before
    assert (change[[1, 2, 3]] > 0).all()
    assert change[5] < 0


@pytest.mark.parametrize("bptt", [1, 3])
@pytest.mark.parametrize("loss", ["cross-entropy", "bpr-max", "top1-max", "bpr", "top1"])
def test_a_last_lane_whose_targets_have_no_negative_learns_nothing(loss: str, bptt: int) -> None:
    trainer = a_trainer(loss=loss, elu=0.0, bptt=bptt, batch_size=2)
    alone = sessions_of([[0, 1, 2, 3, 1]])
    before = trainer.state()
    assert trainer.train_epoch(alone, 1).loss == pytest.approx(0)
    after = trainer.state()
    assert all(np.array_equal(after[n], array) for n, array in before.items() if n != "steps")


def test_a_processor_without_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    # Emulated, a training takes 3 times as long for fewer digits.
    def weights(precision: str, **has: bool) -> torch.Tensor:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, **has})
        trainer = a_trainer(precision=precision)
        trainer.train_epoch(SESSIONS, 1)
        return trainer.model.item_embedding.detach().clone()

    of_float32 = weights("float32")
    assert torch.equal(weights("bfloat16", avx512_bf16=False), of_float32)
    assert not torch.equal(weights("bfloat16", amx_bf16=True), of_float32)
