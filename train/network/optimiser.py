"""Optimisers that pay for the rows a step touched, not for the catalogue.

On a CPU a rule is one compiled pass over weight, slots and gradient: at H = 512 and 2,176 rows
1.3 ms where PyTorch's separate operations take 9. Elsewhere the same rule runs in PyTorch.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from train.network import kernels
from train.network.checkpoint import check_arrays

Rule = Literal["adagrad", "adam", "sgd"]

EPSILON = 1e-6
"""Added to a root, since a gradient of exactly 0 (dropout makes them) must not divide by 0."""
ADAM_FIRST, ADAM_SECOND = 0.9, 0.999

_WHOLE = np.zeros(1, dtype=np.int64)
"""The row index of a parameter that is updated as one row."""

SLOTS = {"adagrad": ("velocity", "squares"), "adam": ("first", "squares"), "sgd": ("velocity",)}


class Rates(NamedTuple):
    """What a step's update depends on besides the gradient."""

    learning_rate: float
    momentum: float
    step: int
    """Steps so far, including this one: for Adam's bias correction."""


class Optimiser:
    """One rule over all parameters, whole or by rows. A row that a step misses keeps its slots.

    adagrad: a <- a + g^2, u = lr * g / sqrt(a) (Duchi et al., JMLR 12, 2011), a beginning as
    `initial_accumulator`: at 0 the first gradient of a weight moves it by lr, however small it is;
    sgd: u = lr * g. Both with momentum as Bengio et al. simplify Nesterov's (arXiv 1212.0901, sec.
    3.5): v <- momentum * v - u; w <- w + momentum * v - u.
    adam: Kingma & Ba (arXiv 1412.6980).
    """

    def __init__(
        self,
        rule: Rule,
        parameters: Mapping[str, nn.Parameter],
        *,
        momentum: float = 0.0,
        initial_accumulator: float = 0.0,
    ) -> None:
        self._rule: Rule = rule
        self._momentum = momentum
        self.step_count = 0
        self._parameters = {name: parameter.detach() for name, parameter in parameters.items()}
        unused = {"velocity"} if momentum == 0 else set()
        begin = {"squares": initial_accumulator} if rule == "adagrad" else {}
        self._slots = {
            name: {
                slot: tensor.new_zeros(0)
                if slot in unused
                else torch.full_like(tensor, begin.get(slot, 0.0))
                for slot in SLOTS[rule]
            }
            for name, tensor in self._parameters.items()
        }
        # The same memory as arrays: made anew for every update they are 0.2 ms of a small step.
        self._arrays = {
            name: [_by_rows(t) for t in (tensor, *self._slots[name].values())]
            for name, tensor in self._parameters.items()
            if not tensor.is_cuda
        }

    def begin_step(self, learning_rate: float) -> None:
        """Fix what all updates of a step share."""
        self.step_count += 1
        self._rates = Rates(learning_rate, self._momentum, self.step_count)

    @torch.no_grad()
    def step(
        self, name: str, gradient: Float[Tensor, "..."], row: Int64[Tensor, "U"] | None = None
    ) -> None:
        """Update a parameter in place: the whole of it, or the named rows, which are distinct."""
        weight, slots = self._parameters[name], self._slots[name]
        if not weight.is_cuda:
            arrays, at = self._arrays[name], _WHOLE
            if row is None:
                arrays = [array.reshape(1, -1) for array in arrays]
            else:
                at = row.numpy()
            gradients = gradient.contiguous().numpy().reshape(len(at), -1)
            _fused(self._rule, arrays, at, gradients, self._rates)
        elif row is None:
            _update(self._rule, weight, slots, gradient, self._rates)
        else:
            rows = weight[row]
            of_rows = {k: slot[row] if slot.numel() else slot for k, slot in slots.items()}
            _update(self._rule, rows, of_rows, gradient, self._rates)
            weight.index_copy_(0, row, rows)
            for slot, values in of_rows.items():
                if values.numel():
                    slots[slot].index_copy_(0, row, values)

    def state(self) -> dict[str, np.ndarray]:
        """A copy of all slots by name, and the number of steps."""
        slots = {name: tensor.cpu().numpy().copy() for name, tensor in self._tensors().items()}
        return slots | {"steps": np.array(self.step_count)}

    def load_state(self, source: str, state: dict[str, np.ndarray]) -> None:
        """Go on from a `state()`; TrainError names `source` if it is of another shape."""
        steps = torch.zeros((), dtype=torch.int64)
        check_arrays(source, state, self._tensors() | {"steps": steps})
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.from_numpy(state[name]))
        self.step_count = int(state["steps"])

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{slot}.{name}": tensor
            for name, slots in self._slots.items()
            for slot, tensor in slots.items()
        }


def _by_rows(table: Tensor) -> np.ndarray:
    """A table's own memory, [N, H]; of a vector H is 1, of a slot that is not used N."""
    return table.numpy().reshape(len(table) if table.numel() else 1, -1)


def _update(
    rule: Rule, weight: Tensor, slots: dict[str, Tensor], gradient: Tensor, rates: Rates
) -> None:
    """The rule in PyTorch's operations, in place."""
    lr = rates.learning_rate
    if rule == "adam":
        slots["first"].lerp_(gradient, 1 - ADAM_FIRST)
        slots["squares"].lerp_(gradient.square(), 1 - ADAM_SECOND)
        first, second = _adam_scales(rates)
        change = slots["first"] * first / ((slots["squares"] * second).sqrt() + EPSILON)
        weight.sub_(change, alpha=lr)
        return
    change = -lr * gradient
    if rule == "adagrad":
        change /= slots["squares"].addcmul_(gradient, gradient).sqrt().add_(EPSILON)
    if rates.momentum:
        velocity = slots["velocity"].mul_(rates.momentum).add_(change)
        change = change.add_(velocity, alpha=rates.momentum)
    weight.add_(change)


def _adam_scales(rates: Rates) -> tuple[float, float]:
    """The bias corrections of both moments."""
    return 1 / (1 - ADAM_FIRST**rates.step), 1 / (1 - ADAM_SECOND**rates.step)


def _fused(
    rule: Rule, tables: list[np.ndarray], row: np.ndarray, gradient: np.ndarray, rates: Rates
) -> None:
    lr, momentum = np.float32(rates.learning_rate), np.float32(rates.momentum)
    epsilon = np.float32(EPSILON)
    if rule == "adagrad":
        kernels.adagrad(*tables, row, gradient, lr, momentum, epsilon)
    elif rule == "adam":
        moments = map(np.float32, (ADAM_FIRST, ADAM_SECOND, *_adam_scales(rates)))
        kernels.adam(*tables, row, gradient, lr, *moments, epsilon)
    else:
        kernels.sgd(*tables, row, gradient, lr, momentum)
