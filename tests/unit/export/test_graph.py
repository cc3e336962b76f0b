"""The encode graph computes what the model computes; the rank graph's laws are the scorer's."""

from typing import Literal

import numpy as np
import onnxruntime
import pytest
import torch

from export.graph import GRULayerWeights, encode_graph
from train.checkpoint import weights_of
from train.model import GRU4Rec, GRU4RecConfig


@pytest.mark.parametrize(
    ("n_layers", "embedding"), [(1, "shared"), (1, "separate"), (3, "separate")]
)
def test_the_graph_steps_sessions_as_the_model_does(
    n_layers: int, embedding: Literal["shared", "separate"]
) -> None:
    torch.manual_seed(5)
    config = GRU4RecConfig(n_items=60, hidden_size=8, n_layers=n_layers, embedding=embedding)
    model = GRU4Rec(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "bias" in name:  # zeros at first, behind which a forgotten bias would hide
                weight.normal_()
    weights = weights_of(model)
    layers = [
        GRULayerWeights(*(weights[f"layers.{n}.{name}"] for name in GRULayerWeights._fields))
        for n in range(n_layers)
    ]
    graph = encode_graph(model.input_table.detach().numpy(), layers)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    for batch_size in (1, 2, 40):
        item_index = random.integers(60, size=batch_size)
        hidden = random.uniform(-1, 1, (n_layers, batch_size, 8)).astype(np.float32)
        (found,) = session.run(["hidden_out"], {"item_index": item_index, "hidden": hidden})
        with torch.inference_mode():
            expected = model.encode(torch.from_numpy(item_index), torch.from_numpy(hidden))
        # float32 sums in another order; values lie in (-1, 1).
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
