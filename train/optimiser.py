"""Adagrad with Nesterov momentum that pays for the rows a step touched, not for the catalogue."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from train.checkpoint import check_arrays


class Adagrad:
    """Adagrad (Duchi et al., JMLR 12, 2011) with momentum as Bengio et al. simplify Nesterov's.

    a <- a + g^2;  u = learning_rate * g / sqrt(a);  v <- momentum * v - u;
    w <- w + momentum * v - u   (arXiv 1212.0901, sec. 3.5, with u for the gradient step).
    A row that a step does not touch keeps w, a and v: its velocity waits for its next gradient.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        learning_rate: float,
        momentum: float = 0.0,
    ) -> None:
        self.learning_rate = learning_rate
        self.momentum = momentum
        self._parameters = dict(parameters)
        self._squares = {name: torch.zeros_like(p) for name, p in self._parameters.items()}
        self._velocity = (
            {name: torch.zeros_like(p) for name, p in self._parameters.items()} if momentum else {}
        )

    @torch.no_grad()
    def step(self, name: str, gradient: Float[Tensor, "..."]) -> None:
        """Update a whole parameter in place."""
        squares = self._squares[name].addcmul_(gradient, gradient)
        change = self._change(gradient, squares)
        if self.momentum:
            velocity = self._velocity[name].mul_(self.momentum).add_(change)
            change = change.add_(velocity, alpha=self.momentum)
        self._parameters[name].add_(change)

    @torch.no_grad()
    def step_rows(
        self, name: str, row: Int64[Tensor, "U"], gradient: Float[Tensor, "U ..."]
    ) -> None:
        """Update the named rows in place; they must be distinct."""
        squares = self._squares[name][row].addcmul_(gradient, gradient)
        self._squares[name].index_copy_(0, row, squares)
        change = self._change(gradient, squares)
        if self.momentum:
            velocity = self._velocity[name][row].mul_(self.momentum).add_(change)
            self._velocity[name].index_copy_(0, row, velocity)
            change = change.add_(velocity, alpha=self.momentum)
        self._parameters[name].index_add_(0, row, change)

    def _change(self, gradient: Tensor, squares: Tensor) -> Tensor:
        # 1e-6 beside the root: a gradient of exactly 0 (dropout does that) must not divide by 0.
        return gradient / squares.sqrt().add_(1e-6) * -self.learning_rate

    def state(self) -> dict[str, np.ndarray]:
        """A copy of the accumulators and velocities by name."""
        return {name: tensor.numpy().copy() for name, tensor in self._tensors().items()}

    def load_state(self, source: str, state: dict[str, np.ndarray]) -> None:
        """Go on from a `state()`; CheckpointError names `source` if it is of another shape."""
        check_arrays(source, state, self._tensors())
        for name, tensor in self._tensors().items():
            tensor.copy_(torch.from_numpy(state[name]))

    def _tensors(self) -> dict[str, Tensor]:
        squares = {f"squares.{name}": tensor for name, tensor in self._squares.items()}
        return squares | {f"velocity.{name}": tensor for name, tensor in self._velocity.items()}
