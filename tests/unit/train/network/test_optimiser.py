from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from train.command import TrainError
from train.network.optimiser import Optimiser, Rates, Rule, _update

CASES: list[tuple[Rule, dict[str, float]]] = [
    ("adagrad", {}),
    ("adagrad", {"momentum": 0.4}),
    ("adam", {}),
    ("sgd", {}),
    ("sgd", {"momentum": 0.4}),
]
cases = pytest.mark.parametrize(("rule", "options"), CASES, ids=str)


def an_optimiser(rule: Rule, weight: nn.Parameter, **options: Any) -> Optimiser:
    return Optimiser(rule, {"w": weight}, **options)


def step(optimiser: Optimiser, gradient: Tensor, learning_rate: float = 0.1) -> None:
    optimiser.begin_step(learning_rate)
    optimiser.step("w", gradient)


def test_two_steps_of_adagrad_with_momentum_worked_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimiser = an_optimiser("adagrad", weight, momentum=0.5)
    step(optimiser, torch.tensor([2.0]))
    # a = 4, u = 0.1 * 2 / 2 = 0.1, v = -0.1, w = 1 + 0.5 * -0.1 - 0.1
    assert weight.item() == pytest.approx(0.85)
    step(optimiser, torch.tensor([2.0]))
    # a = 8, u = 0.2 / sqrt(8) = 0.070711, v = -0.05 - 0.070711 = -0.120711
    # w = 0.85 + 0.5 * -0.120711 - 0.070711
    assert weight.item() == pytest.approx(0.718934, abs=1e-6)


def test_adagrad_from_an_initial_accumulator_worked_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimiser = an_optimiser("adagrad", weight, initial_accumulator=12.0)
    step(optimiser, torch.tensor([2.0, 0.02]))
    # a = 16, u = 0.1 * 2 / 4 = 0.05; a = 12.0004, u = 0.002 / 3.4642 = 0.000577
    assert weight.tolist() == pytest.approx([0.95, 0.999423], abs=1e-6)


def test_a_step_of_sgd_worked_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimiser = an_optimiser("sgd", weight, momentum=0.5)
    step(optimiser, torch.tensor([2.0]))
    # u = 0.2, v = -0.2, w = 1 - 0.2 + 0.5 * -0.2
    assert weight.item() == pytest.approx(0.7)


def test_adam_is_what_torch_calls_adam() -> None:
    torch.manual_seed(1)
    start = torch.randn(6)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimiser = an_optimiser("adam", ours)
    reference = torch.optim.Adam([theirs], lr=0.1, eps=1e-6)
    for _ in range(5):
        gradient = torch.randn(6)
        step(optimiser, gradient)
        theirs.grad = gradient
        reference.step()
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


@cases
def test_rows_and_whole_parameters_are_updated_alike(rule: Rule, options: dict[str, float]) -> None:
    torch.manual_seed(1)
    start, gradients = torch.randn(5, 3), [torch.randn(5, 3) for _ in range(4)]
    whole, by_row = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    dense, sparse = (an_optimiser(rule, w, **options) for w in (whole, by_row))
    order = torch.tensor([3, 0, 4, 1, 2])
    for gradient in gradients:
        step(dense, gradient)
        sparse.begin_step(0.1)
        sparse.step("w", gradient[order], order)
    torch.testing.assert_close(by_row, whole)


@cases
def test_the_compiled_pass_and_torchs_operations_agree(
    rule: Rule, options: dict[str, float]
) -> None:
    torch.manual_seed(1)
    weight = nn.Parameter(torch.randn(4, 3))
    optimiser = an_optimiser(rule, weight, **options)
    plain = weight.detach().clone()
    slots = {name: torch.zeros_like(plain) for name in ("velocity", "squares", "first")}
    for number in range(1, 5):
        gradient = torch.randn(4, 3)
        step(optimiser, gradient)
        rates = Rates(0.1, options.get("momentum", 0), number)
        _update(rule, plain, slots, gradient, rates)
    torch.testing.assert_close(weight.detach(), plain)


@cases
def test_rows_that_a_step_does_not_touch_keep_weight_and_slots(
    rule: Rule, options: dict[str, float]
) -> None:
    weight = nn.Parameter(torch.ones(4, 2))
    optimiser = an_optimiser(rule, weight, **options)
    step(optimiser, torch.ones(4, 2))
    weight_before, state_before = weight.detach().clone(), optimiser.state()
    optimiser.begin_step(0.1)
    optimiser.step("w", torch.ones(1, 2), torch.tensor([2]))
    untouched = [0, 1, 3]
    assert torch.equal(weight[untouched], weight_before[untouched])
    assert not torch.equal(weight[2], weight_before[2])
    for name, array in optimiser.state().items():
        if array.ndim == 2:
            assert (array[untouched] == state_before[name][untouched]).all()
            assert (array[2] != state_before[name][2]).all()


def test_a_gradient_of_zero_changes_nothing() -> None:
    weight = nn.Parameter(torch.ones(2))
    step(an_optimiser("adagrad", weight), torch.zeros(2))
    assert weight.tolist() == [1.0, 1.0]


@cases
def test_a_state_that_is_loaded_goes_on_alike(rule: Rule, options: dict[str, float]) -> None:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    one, other = (an_optimiser(rule, w, **options) for w in (first, second))
    step(one, torch.tensor([1.0, 2.0, 3.0]))
    other.load_state("a file", one.state())
    second.data.copy_(first)
    for optimiser in (one, other):
        step(optimiser, torch.tensor([0.5, -1.0, 0.0]))
    assert torch.equal(first, second)


def test_a_state_of_another_rule_or_shape_is_refused() -> None:
    weight = nn.Parameter(torch.ones(3))
    plain = an_optimiser("adagrad", weight).state()
    with pytest.raises(TrainError, match=r"a file contains .*squares.w"):
        an_optimiser("adam", weight).load_state("a file", plain)
    with pytest.raises(TrainError, match=r"squares.w has shape \(2,\)"):
        other = plain | {"squares.w": np.ones(2)}
        an_optimiser("adagrad", weight).load_state("a file", other)
