"""What a training step minimises, as functions of scores.

All share one shape: row b of `scores` rates C distinct items for session b, `target[b]` is the
column of the item that was clicked next, and every other column is a negative, but those of a score
of NO_NEGATIVE or less. Each gives one loss a row, 0 where C is 1 and there is no negative; the
trainer weighs and averages them.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import FunctionCtx

from train.network import kernels

NO_NEGATIVE = -1e4
"""The score of what is no negative of a row; -inf would make the losses that square it nan."""


def cross_entropy(
    scores: Float[Tensor, "B C"],
    target: Int64[Tensor, "B"],
    log_q: Float[Tensor, "C"] | None = None,
) -> Float[Tensor, "B"]:
    """Cross-entropy of the softmax over the C items.

    ``-log(exp(r_t) / sum_j exp(r_j))`` with ``r = scores - log_q``: the logQ correction. `log_q` is
    the log of the chance that an item is among the C at all; without it a model trained on
    sampled negatives underrates what is drawn often
    (Bengio & Senecal, IEEE TNN 19(4), 2008; in-batch: Yi et al., RecSys 2019, sec. 3).
    Over the whole catalogue, without `log_q`, it is the full softmax.
    """
    corrected = scores if log_q is None else scores - log_q
    return F.cross_entropy(corrected, target, reduction="none")


def bpr(scores: Float[Tensor, "B C"], target: Int64[Tensor, "B"]) -> Float[Tensor, "B"]:
    """BPR: ``-mean_j log sigmoid(r_t - r_j)``, j over the negatives. Rendle et al. (UAI 2009), as
    Hidasi et al. use it (arXiv 1511.06939, sec. 3.1.3)."""
    wins = F.logsigmoid(_margin(scores, target))
    return -_mean_of_negatives(wins, scores, target)


def top1(scores: Float[Tensor, "B C"], target: Int64[Tensor, "B"]) -> Float[Tensor, "B"]:
    """TOP1: ``mean_j sigmoid(r_j - r_t) + sigmoid(r_j^2)``, j over the negatives. Hidasi et al.
    (arXiv 1511.06939, sec. 3.1.3)."""
    terms = torch.sigmoid(-_margin(scores, target)) + torch.sigmoid(scores.square())
    return _mean_of_negatives(terms, scores, target)


def top1_max(scores: Float[Tensor, "B C"], target: Int64[Tensor, "B"]) -> Float[Tensor, "B"]:
    """TOP1-max: ``sum_j s_j (sigmoid(r_j - r_t) + sigmoid(r_j^2))``, s the negatives' softmax.
    Hidasi & Karatzoglou (CIKM 2018, arXiv 1706.03847, the section on ranking-max losses)."""
    if scores.shape[1] == 1:
        return 0 * scores[:, 0]
    terms = torch.sigmoid(-_margin(scores, target)) + torch.sigmoid(scores.square())
    s = torch.softmax(scores.scatter(1, target[:, None], -torch.inf), dim=1)
    loss: Tensor = torch.linalg.vecdot(s, terms)
    return loss


def _margin(scores: Float[Tensor, "B C"], target: Int64[Tensor, "B"]) -> Float[Tensor, "B C"]:
    return scores.gather(1, target[:, None]) - scores


def _mean_of_negatives(
    terms: Float[Tensor, "B C"], scores: Float[Tensor, "B C"], target: Int64[Tensor, "B"]
) -> Float[Tensor, "B"]:
    negative = (scores > NO_NEGATIVE).scatter_(1, target[:, None], False)
    mean: Tensor = (terms * negative).sum(dim=1) / negative.sum(dim=1).clamp(min=1)
    return mean


def bpr_max(
    scores: Float[Tensor, "B C"], target: Int64[Tensor, "B"], bpreg: float, elu: float = 0.0
) -> Float[Tensor, "B"]:
    """BPR-max with score regularisation.

    ``-log(sum_j s_j sigmoid(r_t - r_j)) + bpreg * sum_j s_j r_j^2``, j over the negatives, s their
    softmax (Hidasi & Karatzoglou, CIKM 2018, arXiv 1706.03847, the section on ranking-max losses).
    `bpreg` 0 turns the regularisation off. `elu` above 0 first passes the scores above NO_NEGATIVE
    through an exponential linear unit with that alpha, as the authors' published parameters do; it
    is monotonic, so a list is ranked the same without it.
    """
    if scores.shape[1] == 1:
        return 0 * scores[:, 0]
    if scores.dtype == torch.float32 and not scores.is_cuda:
        loss: Tensor = _CompiledBprMax.apply(scores, target, bpreg, elu)
        return loss
    if elu > 0:
        scores = torch.where(scores > NO_NEGATIVE, F.elu(scores, alpha=elu), scores)
    log_s = torch.log_softmax(scores.scatter(1, target[:, None], -torch.inf), dim=1)
    # In logarithms, as in float32 the weighted wins of a lost target underflow to 0.
    log_wins = torch.logsumexp(log_s + F.logsigmoid(_margin(scores, target)), dim=1)
    result: Tensor = bpreg * torch.linalg.vecdot(log_s.exp(), scores.square()) - log_wins
    return result


class _CompiledBprMax(torch.autograd.Function):
    """The loss and its gradient a row at a time: 0.6 ms for 128 x 2,176 scores.

    PyTorch's operations, whose passes over all scores leave the cache, take more than 2.7.
    With d_j = sigmoid(r_t - r_j), S = sum_j s_j d_j and R = sum_j s_j r_j^2:
    dL/dr_j = s_j (1 - d_j^2 / S + bpreg (r_j^2 + 2 r_j - R)) and
    dL/dr_t = -(S - sum_j s_j d_j^2) / S.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, scores: Tensor, target: Tensor, bpreg: float, elu: float
    ) -> Tensor:
        loss, gradient = scores.new_empty(len(scores)), torch.empty_like(scores)
        constants = map(np.float32, (bpreg, elu, NO_NEGATIVE))
        arrays = scores.detach().numpy(), target.numpy()
        kernels.bpr_max(*arrays, *constants, loss.numpy(), gradient.numpy())
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (of_scores,) = ctx.saved_tensors
        return of_scores.mul_(gradient[:, None]), None, None, None
