import numpy as np
import pytest
import torch
from torch import nn

from train.checkpoint import CheckpointError
from train.optimiser import Adagrad


def test_two_steps_worked_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimiser = Adagrad([("w", weight)], learning_rate=0.1, momentum=0.5)
    optimiser.step("w", torch.tensor([2.0]))
    # a = 4, u = 0.1 * 2 / 2 = 0.1, v = -0.1, w = 1 + 0.5 * -0.1 - 0.1
    assert weight.item() == pytest.approx(0.85)
    optimiser.step("w", torch.tensor([2.0]))
    # a = 8, u = 0.2 / sqrt(8) = 0.070711, v = -0.05 - 0.070711 = -0.120711
    # w = 0.85 + 0.5 * -0.120711 - 0.070711
    assert weight.item() == pytest.approx(0.718934, abs=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_rows_and_whole_parameters_are_updated_alike(momentum: float) -> None:
    torch.manual_seed(1)
    start, gradients = torch.randn(5, 3), [torch.randn(5, 3) for _ in range(4)]
    whole, by_row = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    dense = Adagrad([("w", whole)], 0.1, momentum)
    sparse = Adagrad([("w", by_row)], 0.1, momentum)
    order = torch.tensor([3, 0, 4, 1, 2])
    for gradient in gradients:
        dense.step("w", gradient)
        sparse.step_rows("w", order, gradient[order])
    torch.testing.assert_close(by_row, whole)


def test_rows_that_a_step_does_not_touch_keep_weight_square_and_velocity() -> None:
    weight = nn.Parameter(torch.ones(4, 2))
    optimiser = Adagrad([("w", weight)], 0.1, 0.5)
    optimiser.step("w", torch.ones(4, 2))
    weight_before, state_before = weight.detach().clone(), optimiser.state()
    optimiser.step_rows("w", torch.tensor([2]), torch.ones(1, 2))
    untouched = [0, 1, 3]
    assert torch.equal(weight[untouched], weight_before[untouched])
    assert not torch.equal(weight[2], weight_before[2])
    for name, array in optimiser.state().items():
        assert (array[untouched] == state_before[name][untouched]).all()
        assert (array[2] != state_before[name][2]).all()


def test_a_gradient_of_zero_changes_nothing() -> None:
    weight = nn.Parameter(torch.ones(2))
    Adagrad([("w", weight)], 0.1).step("w", torch.zeros(2))
    assert weight.tolist() == [1.0, 1.0]


def test_a_state_that_is_loaded_goes_on_alike() -> None:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    one, other = Adagrad([("w", first)], 0.1, 0.3), Adagrad([("w", second)], 0.1, 0.3)
    one.step("w", torch.tensor([1.0, 2.0, 3.0]))
    other.load_state("a file", one.state())
    second.data.copy_(first)
    for optimiser in (one, other):
        optimiser.step("w", torch.tensor([0.5, -1.0, 0.0]))
    assert torch.equal(first, second)


def test_a_state_without_velocity_is_refused_where_there_is_momentum() -> None:
    weight = nn.Parameter(torch.ones(3))
    plain = Adagrad([("w", weight)], 0.1).state()
    with pytest.raises(CheckpointError, match=r"a file holds \['squares.w'\], expected"):
        Adagrad([("w", weight)], 0.1, 0.3).load_state("a file", plain)
    with pytest.raises(CheckpointError, match=r"squares.w has shape \(2,\)"):
        Adagrad([("w", weight)], 0.1).load_state("a file", {"squares.w": np.ones(2)})
