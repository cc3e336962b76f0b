"""A session model under the evaluator: the state is carried from step to step."""

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from train.measure.ranking import SessionBatch
from train.network.model import SessionModel

MODEL = "model"
"""The network's name among baselines, in figures and in a blend's parts."""


class RowProduct:
    """`query @ rows.T + bias` of one table for many queries, without gradients.

    On a CPU the table is laid out once for oneDNN: 8 rows and more take 91 us each at 43,097 items
    and H = 100, 95 GFLOP/s, where `F.linear`, which calls MKL, takes 160 to 190 on an AMD core
    (bench/results/evaluate.json). Later changes of the table are not seen. Elsewhere `F.linear`.
    """

    def __init__(self, rows: Float[Tensor, "N H"], bias: Float[Tensor, "N"]) -> None:
        self._rows, self._bias = rows.detach(), bias.detach()
        # PyTorch packs so itself when it compiles a frozen model; it has no public name for it.
        packable = rows.device.type == "cpu" and rows.dtype == torch.float32 and len(rows) > 0
        self._is_packed = packable and torch._C._has_mkldnn
        if self._is_packed:
            self._rows = torch.ops.mkldnn._reorder_linear_weight(self._rows.contiguous(), None)

    def __call__(self, query: Float[Tensor, "b H"]) -> Float[Tensor, "b N"]:
        """The scores, in memory of their own.

        Up to 32 MiB the allocator hands the same memory out again and again; a larger matrix is
        mapped anew, and touching its pages for the first time costs 60 us a row.
        """
        if not self._is_packed:
            return F.linear(query, self._rows, self._bias)
        scores = torch.ops.mkldnn._linear_pointwise(query, self._rows, self._bias, "none", [], "")
        return cast(Tensor, scores)


class ModelPredictor:
    """The scores of the whole catalogue after each click, by the model's own forward pass.

    The output rows are taken as they are now: after more training, make another. A model that
    peeks is shown the context of the click to predict: its figures answer another question than
    serving asks.
    """

    def __init__(self, model: SessionModel) -> None:
        self.model = model
        with torch.inference_mode():
            rows = model.output_rows(model.item_embedding)
            self._product = RowProduct(rows, model.output_bias)

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """Scores for each of `batch.steps()`."""
        model = self.model
        device = model.output_bias.device
        context = torch.from_numpy(batch.context).to(device)
        with torch.inference_mode():
            state = model.initial_state(len(batch.lengths))
        for prefix in batch.steps():
            b, position = len(prefix), prefix.shape[1]
            with torch.inference_mode():
                clicks = torch.from_numpy(prefix[:, -1].copy()).to(device)
                query, state = model.encode(clicks, context[:b, position - 1], state[:b])
                scores = self._product(query)
            yield scores.cpu().numpy()
