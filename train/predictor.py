"""A session model under the evaluator: the state is carried from step to step."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from train.evaluate import SessionBatch
from train.model import SessionModel


@dataclass(frozen=True, slots=True)
class ModelPredictor:
    """The scores of the whole catalogue after each click, by the model's own forward pass.

    A model that peeks is shown the context of the click to predict: its figures answer another
    question than serving asks.
    """

    model: SessionModel

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """Scores for each of `batch.steps()`; the array is used again for the next one."""
        model = self.model
        device = model.output_bias.device
        context = torch.from_numpy(batch.context).to(device)
        with torch.inference_mode():
            state = model.initial_state(len(batch.lengths))
            rows, bias = model.output_rows(model.item_embedding), model.output_bias
            scores = torch.empty(len(batch.lengths), len(rows), device=device)
        for prefix in batch.steps():
            b, position = len(prefix), prefix.shape[1]
            with torch.inference_mode():
                clicks = torch.from_numpy(prefix[:, -1].copy()).to(device)
                query, state = model.encode(clicks, context[:b, position - 1], state[:b])
                if model.config.peek_context:
                    query = model.peek(query, context[:b, position])
                torch.addmm(bias, query, rows.T, out=scores[:b])
            yield scores[:b].cpu().numpy()
