"""One epoch of training: steps over session-parallel batches that touch only their own items.

A step copies the embedding rows of its clicks, targets and negatives, differentiates with respect
to the copies, and updates those rows alone: its cost does not grow with the catalogue. The full
softmax is the exception: it touches every row.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import structlog
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.profiler import record_function

from train.data.context import ContextField
from train.data.sessions import Sessions
from train.network import losses
from train.network.batches import Step, session_parallel
from train.network.checkpoint import check_arrays, weights_of
from train.network.hyperparameters import Hyperparameters
from train.network.memory import keep_freed_memory
from train.network.model import Architecture, ModelConfig, SessionModel
from train.network.negatives import NegativeSampler, RowNumbers, has_negative, own_targets
from train.network.optimiser import Optimiser

log = structlog.get_logger()

_TABLES = ("item_embedding", "input_embedding", "output_bias")


class EpochResult(NamedTuple):
    """What one pass over the sessions cost and brought."""

    loss: float
    """Mean over the clicks trained on; not a number once one step's loss was not."""
    clicks: int
    seconds: float
    complete: bool
    """False if the deadline came first."""


class Trainer:
    """A model in training with all that changes from step to step."""

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        support: Int64[np.ndarray, "N"],
        *,
        context: Sequence[ContextField] = (),
        device: str = "cpu",
    ) -> None:
        keep_freed_memory()
        self.hyperparameters = h = hyperparameters
        self._device = torch.device(device)
        self._in_bfloat16 = h.precision == "bfloat16" and computes_bfloat16(device)
        if h.precision == "bfloat16" and not self._in_bfloat16:
            log.warning(
                "float32_instead_of_bfloat16", device=device, note="the device has no bfloat16"
            )
        torch.manual_seed(h.seed)
        self.model = SessionModel(
            ModelConfig(
                n_items=len(support),
                context=tuple(context),
                **h.model_dump(include=set(Architecture.model_fields)),
            )
        ).to(self._device)
        parameters = dict(self.model.named_parameters())
        self._dense = [(name, p) for name, p in parameters.items() if name not in _TABLES]
        self._optimiser = Optimiser(
            h.optimiser, parameters, momentum=h.momentum, initial_accumulator=h.initial_accumulator
        )
        self.sampler = NegativeSampler(support, h.sample_alpha)
        self._numbers = RowNumbers(len(support))
        self._log_q: Tensor | None = None
        if h.loss == "cross-entropy":
            log_q = self.sampler.log_inclusion(h.n_negatives, h.batch_size * h.bptt)
            self._log_q = torch.from_numpy(log_q.astype(np.float32)).to(self._device)

    def train_epoch(
        self,
        sessions: Sessions,
        epoch: int,
        *,
        deadline: float = float("inf"),
        on_step: Callable[[int, float], None] = lambda clicks, loss: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> EpochResult:
        """One pass over the sessions, or less if `clock` reaches `deadline`.

        `on_step` hears the clicks and the mean loss of each step. Random numbers follow from the
        seed and `epoch` alone.
        """
        h = self.hyperparameters
        seeds = np.random.SeedSequence([h.seed, epoch]).spawn(3)
        torch.manual_seed(int(seeds[0].generate_state(1)[0]))
        order = np.random.default_rng(seeds[1])
        in_time_order = h.order == "time"
        steps = session_parallel(sessions, h.batch_size, order, in_time_order=in_time_order)
        negatives = self.sampler.blocks(
            h.n_negatives if h.is_sampled else 0, np.random.default_rng(seeds[2])
        )
        state = self.model.initial_state(h.batch_size)
        self.model.train()
        loss_sum, n_clicks, complete, begin = 0.0, 0, True, clock()
        for window in _windows(steps, h.bptt):
            if clock() >= deadline:
                complete = False
                break
            self._optimiser.begin_step(h.learning_rate)
            state, loss = self._step(window, next(negatives), state)
            learnt = sum(len(step.target) for step in window)
            loss_sum += loss * learnt
            n_clicks += learnt
            on_step(learnt, loss)
        self.model.eval()
        return EpochResult(loss_sum / max(1, n_clicks), n_clicks, clock() - begin, complete)

    def _step(
        self, window: list[Step], negatives: Int64[np.ndarray, "S"], state: Float[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "b S"], float]:
        """Learn from a click or a few of each session; the new state and the mean loss. No gradient
        flows into clicks before the window: the state is what it is."""
        model, h = self.model, self.hyperparameters
        with record_function("candidates"):
            lanes = [len(step.target) for step in window]
            click = np.concatenate([step.item_index for step in window])
            target = np.concatenate([step.target for step in window])
            weight = np.concatenate([step.weight for step in window])
            # In the full softmax every item is a candidate, and its row is its number.
            candidate, only_clicked, clicked = None, click[:0], click
            if h.is_sampled:
                drawn = np.concatenate([target, negatives])
                # Items that were only clicked, and are no candidates, are numbered behind them.
                item, place = self._numbers.number(np.concatenate([drawn, click]))
                n_candidates = place[: len(drawn)].max() + 1
                candidate, only_clicked = self._tensor(item[:n_candidates]), item[n_candidates:]
                target, clicked = place[: len(target)], place[len(drawn) :]
            rows, bias = (_leaf(p, candidate) for p in (model.item_embedding, model.output_bias))
            inputs = _leaf(model.input_table, self._tensor(click))
        in_bfloat16 = torch.autocast(self._device.type, torch.bfloat16, enabled=self._in_bfloat16)
        with record_function("forward"), in_bfloat16:
            queries = []
            of_step = torch.split(inputs, lanes)
            for step, embedded in zip(window, of_step, strict=True):
                keep = self._tensor((~step.first).astype(np.float32))
                state = state[: len(keep)] * keep[:, None]
                query, state = model.step(embedded, self._tensor(step.context), state)
                queries.append(query)
            query = queries[0] if len(queries) == 1 else torch.cat(queries)
            scores = model.score_rows(query, rows, bias).float()
        with record_function("loss"):
            if len(window) > 1 and h.is_sampled:
                row, own = own_targets(lanes, target)
                # In place: no loss has a gradient there.
                scores.detach()[self._tensor(row), self._tensor(own)] = losses.NO_NEGATIVE
                if scores.shape[1] <= len(window):  # the last lanes, without extra negatives
                    weight = weight * has_negative(target, row, own, scores.shape[1])
            losses_of_rows = self._losses(scores, self._tensor(target), candidate)
            loss = (losses_of_rows * self._tensor(weight)).mean()
        with record_function("backward"):
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        with record_function("update"):
            for name, parameter in self._dense:
                self._optimiser.step(name, _gradient(parameter))
                parameter.grad = None
            self._optimiser.step("output_bias", _gradient(bias), candidate)
            if h.embedding == "shared":
                self._update_shared(rows, candidate, inputs, clicked, only_clicked)
            else:
                self._optimiser.step("item_embedding", _gradient(rows), candidate)
                item, place = self._numbers.number(click)
                total = _summed(_gradient(inputs), self._tensor(place), len(item))
                self._optimiser.step("input_embedding", total, self._tensor(item))
        return state.detach().float(), loss.item()

    def _losses(
        self,
        scores: Float[Tensor, "B C"],
        target: Int64[Tensor, "B"],
        candidate: Int64[Tensor, "C"] | None,
    ) -> Float[Tensor, "B"]:
        h = self.hyperparameters
        match h.loss:
            case "bpr-max":
                return losses.bpr_max(scores, target, h.bpreg, h.elu)
            case "cross-entropy" | "softmax":
                log_q = None if self._log_q is None else self._log_q[candidate]
                return losses.cross_entropy(scores, target, log_q)
            case "top1-max":
                return losses.top1_max(scores, target)
            case "bpr":
                return losses.bpr(scores, target)
            case "top1":
                return losses.top1(scores, target)

    def _update_shared(
        self,
        rows: Float[Tensor, "C H"],
        candidate: Int64[Tensor, "C"] | None,
        inputs: Float[Tensor, "B H"],
        clicked: Int64[np.ndarray, "B"],
        only_clicked: Int64[np.ndarray, "U"],
    ) -> None:
        """Update one table by the gradients from both of its ends, each row once. Row b of `inputs`
        is row `clicked[b]` of `rows` with the items `only_clicked` behind them."""
        gradient, of_inputs = _gradient(rows), _gradient(inputs)
        inside = clicked < len(gradient)
        gradient.index_add_(0, self._tensor(clicked[inside]), of_inputs[self._tensor(inside)])
        self._optimiser.step("item_embedding", gradient, candidate)
        if len(only_clicked):
            place = self._tensor(clicked[~inside] - len(gradient))
            total = _summed(of_inputs[self._tensor(~inside)], place, len(only_clicked))
            self._optimiser.step("item_embedding", total, self._tensor(only_clicked))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def state(self) -> dict[str, np.ndarray]:
        """A copy of all that training changes, weights included."""
        return weights_of(self.model) | self._optimiser.state()

    def warm_start(self, state: dict[str, np.ndarray]) -> None:
        """Begin as a `state()` of the same architecture whose items are the first of these."""
        own = self.state()
        for name, array in own.items():
            before = state.get(name)
            # An empty slot has no use here, as velocity without momentum.
            if before is None or before.shape[1:] != array.shape[1:] or not array.size:
                continue
            if array.ndim:
                array[: len(before)] = before
            else:  # the number of steps, by which moments that are carried on are corrected
                array[...] = before
        self.load_state("the warm start", own)

    def load_state(self, source: str, state: dict[str, np.ndarray]) -> None:
        """Go on from a `state()`; TrainError names `source` if it is of another model."""
        own = self.model.state_dict()
        weights = {name: state[name] for name in own if name in state}
        check_arrays(source, weights, own)
        self.model.load_state_dict({n: torch.from_numpy(array) for n, array in weights.items()})
        self._optimiser.load_state(source, {n: a for n, a in state.items() if n not in own})


def computes_bfloat16(device: str) -> bool:
    """Whether the device multiplies in bfloat16 itself. A CPU that does not takes 3.7 times as long
    as for float32 (128 x 512 x 2,176, AVX-512 alone)."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(has for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def _windows(steps: Iterator[Step], n_clicks: int) -> Iterator[list[Step]]:
    while window := list(islice(steps, n_clicks)):
        yield window


def _leaf(table: Tensor, row: Int64[Tensor, "U"] | None) -> Float[Tensor, "U ..."]:
    """The named rows, or the whole table, as what a step differentiates by."""
    rows = table.detach() if row is None else table.detach().index_select(0, row)
    return rows.requires_grad_()


def _summed(
    gradient: Float[Tensor, "B E"], place: Int64[Tensor, "B"], n_rows: int
) -> Float[Tensor, "U E"]:
    return gradient.new_zeros(n_rows, gradient.shape[1]).index_add_(0, place, gradient)


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None, "backward() reaches every tensor of a step"
    return tensor.grad
