"""A session model under the evaluator: the state is carried from step to step."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float

from train.measure.matmul import RowProduct
from train.measure.ranking import SessionBatch
from train.network.model import SessionModel

MODEL = "model"
"""The network's name among baselines, in figures and in a blend's parts."""


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
