"""The encode graph: the model's own ``encode``, traced by PyTorch's exporter."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from export.rank import OPSET
from train.model import GRU4Rec


class _Encode(nn.Module):
    def __init__(self, model: GRU4Rec) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, item_index: Int64[Tensor, "B"], hidden: Float[Tensor, "L B H"]
    ) -> Float[Tensor, "L B H"]:
        return self.model.encode(item_index, hidden)


def encode_graph(model: GRU4Rec) -> onnx.ModelProto:
    """``item_index`` int64[B] and ``hidden`` float[L, B, H] to ``hidden_out`` float[L, B, H].

    One click for each of B sessions, B free. The same weights give the same bytes wherever the
    source stands: the exporter's notes on each node, with their paths, are taken out.
    """
    encode = _Encode(model).eval()
    hidden_shape = (model.config.n_layers, 3, model.config.hidden_size)
    with _quiet_exporter():
        program = torch.onnx.export(
            encode,
            (torch.zeros(3, dtype=torch.int64), torch.zeros(hidden_shape)),
            input_names=["item_index", "hidden"],
            output_names=["hidden_out"],
            dynamic_shapes={"item_index": {0: "B"}, "hidden": {1: "B"}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.checker.check_model(graph)
    return graph


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """What PyTorch 2.15 says of every export, whatever the model, is kept off the terminal."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # "torchvision is not installed", once per operator
    try:
        with warnings.catch_warnings():
            # Two inputs share the size B, as they should.
            warnings.filterwarnings("ignore", "# The axis name: B will not be used", UserWarning)
            yield
    finally:
        registration.setLevel(level)
