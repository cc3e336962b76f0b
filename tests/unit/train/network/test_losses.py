import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from train.network.losses import NO_NEGATIVE, bpr, bpr_max, cross_entropy, top1, top1_max

LN2, LN3 = math.log(2), math.log(3)


def test_cross_entropy_of_one_two_and_three_parts() -> None:
    scores = torch.tensor([[0.0, LN2, LN3]])  # softmax 1/6, 2/6, 3/6
    assert cross_entropy(scores, torch.tensor([1])).item() == pytest.approx(math.log(3))


def test_logq_divides_each_item_by_its_chance_to_be_drawn() -> None:
    scores = torch.tensor([[0.0, LN2, LN3]])
    log_q = torch.tensor([0.0, -LN2, -2 * LN2])  # always, every second, every fourth time
    # parts 1 : 2 * 2 : 3 * 4, the target has 4 of 17
    loss = cross_entropy(scores, torch.tensor([1]), log_q)
    assert loss.item() == pytest.approx(math.log(17 / 4))


def test_bpr_max_weighs_each_win_by_the_negatives_softmax() -> None:
    # Target 0 in the middle column; negatives 0 and ln 3: weights 1/4 and 3/4,
    # sigmoid(0 - 0) = 1/2, sigmoid(0 - ln 3) = 1/4, sum 1/8 + 3/16 = 5/16.
    scores = torch.tensor([[0.0, 0.0, LN3]])
    target = torch.tensor([1])
    assert bpr_max(scores, target, bpreg=0.0).item() == pytest.approx(-math.log(5 / 16))
    regularised = bpr_max(scores, target, bpreg=0.5).item()
    assert regularised == pytest.approx(-math.log(5 / 16) + 0.5 * 3 / 4 * LN3**2)


def test_elu_bends_negative_scores_alone() -> None:
    # elu(-ln 2) = 0.8 * (1/2 - 1) = -0.4
    bent = bpr_max(torch.tensor([[-LN2, LN3, 0.0]]), torch.tensor([0]), bpreg=1.0, elu=0.8)
    straight = bpr_max(torch.tensor([[-0.4, LN3, 0.0]]), torch.tensor([0]), bpreg=1.0)
    assert bent.item() == pytest.approx(straight.item())


def test_bpr_is_the_mean_over_the_negatives() -> None:
    # Target 0 against 0 and ln 3: sigmoid 1/2 and 1/4, so (ln 2 + ln 4) / 2.
    scores, target = torch.tensor([[0.0, 0.0, LN3]]), torch.tensor([1])
    assert bpr(scores, target).item() == pytest.approx(1.5 * LN2)


def test_top1_and_top1_max_add_the_size_of_the_negatives() -> None:
    # sigmoid(0 - 0) + sigmoid(0) = 1; sigmoid(ln 3 - 0) + sigmoid(ln 3 ^ 2) = 3/4 + t.
    scores, target = torch.tensor([[0.0, 0.0, LN3]]), torch.tensor([1])
    t = 1 / (1 + math.exp(-(LN3**2)))
    assert top1(scores, target).item() == pytest.approx((1 + 3 / 4 + t) / 2)
    assert top1_max(scores, target).item() == pytest.approx(1 / 4 + 3 / 4 * (3 / 4 + t))


Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "bpr": bpr,
    "top1": top1,
    "top1_max": top1_max,
    "bpr_max": lambda s, t: bpr_max(s, t, bpreg=1.3, elu=0.5),
    "cross_entropy": lambda s, t: cross_entropy(s, t, torch.linspace(-2, 0, 6).to(s.dtype)),
    "softmax": cross_entropy,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_has_the_loss_it_has_alone(name: str) -> None:
    torch.manual_seed(2)
    scores, target = torch.randn(4, 6), torch.tensor([0, 5, 2, 2])
    rows = [LOSSES[name](scores[b : b + 1], target[b : b + 1]) for b in range(4)]
    torch.testing.assert_close(LOSSES[name](scores, target), torch.cat(rows))


@pytest.mark.parametrize("name", LOSSES.keys() - {"cross_entropy"})
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_target_without_a_negative_costs_nothing_and_moves_nothing(
    name: str, dtype: torch.dtype
) -> None:
    scores = torch.tensor([[2.0], [-1.0]], dtype=dtype, requires_grad=True)
    losses = LOSSES[name](scores, torch.tensor([0, 0]))
    assert losses.tolist() == [0, 0]
    losses.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0], [0]]


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_differences(name: str) -> None:
    torch.manual_seed(3)
    scores = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([4, 0, 2])
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, target), (scores,))


@pytest.mark.parametrize("name", LOSSES)
def test_a_better_score_of_the_target_is_a_smaller_loss(name: str) -> None:
    scores, target = torch.tensor([[0.1, 0.4, -0.2, 0.3, 0.0, 0.2]]), torch.tensor([2])
    better = scores.index_fill(1, target, 1.0)
    assert LOSSES[name](better, target).item() < LOSSES[name](scores, target).item()


@pytest.mark.parametrize("name", LOSSES.keys() - {"cross_entropy"})
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_no_negative_is_as_if_it_were_not_there(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    scores = torch.randn(3, 6, dtype=dtype)
    own = torch.tensor([[1, 3], [4, 5], [0, 3]])
    target = torch.tensor([2, 0, 5])
    rest = [[c for c in range(6) if c not in columns] for columns in own.tolist()]

    masked = scores.scatter(1, own, NO_NEGATIVE).requires_grad_()
    losses = LOSSES[name](masked, target)
    losses.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for row, columns in enumerate(rest):
        alone = scores[row, columns][None].requires_grad_()
        loss = LOSSES[name](alone, torch.tensor([columns.index(int(target[row]))]))
        loss.sum().backward()  # type: ignore[no-untyped-call]  # the same
        assert losses[row].item() == pytest.approx(loss.item(), rel=1e-5)
        assert masked.grad is not None and alone.grad is not None
        torch.testing.assert_close(masked.grad[row, columns], alone.grad[0], atol=1e-6, rtol=1e-5)
        assert masked.grad[row, own[row]].abs().max() < 1e-6


@pytest.mark.parametrize("elu", [0.0, 0.5, 1.0])
def test_gradients_of_bpr_max_agree_with_differences(elu: float) -> None:
    torch.manual_seed(3)
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([4, 0, 2])
    assert torch.autograd.gradcheck(lambda s: bpr_max(s, target, bpreg=0.7, elu=elu), (scores,))


@pytest.mark.parametrize("elu", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("bpreg", [0.0, 0.9])
def test_the_compiled_bpr_max_is_that_of_torchs_operations(elu: float, bpreg: float) -> None:
    torch.manual_seed(5)
    scores = (3 * torch.randn(7, 211)).requires_grad_()
    double = scores.detach().double().requires_grad_()
    target, weight = torch.randint(211, (7,)), torch.rand(7)
    (bpr_max(scores, target, bpreg, elu) * weight).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    (bpr_max(double, target, bpreg, elu) * weight).sum().backward()  # type: ignore[no-untyped-call]  # the same
    torch.testing.assert_close(
        bpr_max(scores, target, bpreg, elu).double(),
        bpr_max(double, target, bpreg, elu),
        atol=1e-5,
        rtol=1e-6,
    )
    assert scores.grad is not None and double.grad is not None
    torch.testing.assert_close(scores.grad.double(), double.grad, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("elu", [0.0, 1.0])
def test_a_hopeless_target_costs_much_but_not_infinitely_much(elu: float) -> None:
    scores = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = bpr_max(scores, torch.tensor([0]), bpreg=0.0, elu=elu).sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert 50 < loss.item() < 60
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
