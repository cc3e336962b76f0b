"""A model's graphs: the forward pass of `train/network` written again in ONNX operations."""

from collections.abc import Iterable
from typing import NamedTuple, cast

import numpy as np
import onnx
from jaxtyping import Float32
from onnx import TensorProto
from torch import Tensor

from export.graph import Graph, rank_graph, rank_int8_graph, value_info
from train.network.cells import LowRank, RecurrentLayer, WindowLayer
from train.network.model import SessionModel


class BundleGraphs(NamedTuple):
    """A bundle's graphs as they are in memory."""

    encode: onnx.ModelProto
    rank: onnx.ModelProto
    rank_int8: onnx.ModelProto | None

    def serialized(self) -> tuple[bytes, bytes, bytes | None]:
        """The bytes of their files, in the same order."""
        int8 = self.rank_int8 and self.rank_int8.SerializeToString()
        return self.encode.SerializeToString(), self.rank.SerializeToString(), int8


def bundle_graphs(model: SessionModel, k: int, with_bias: bool = False) -> BundleGraphs:
    """The graphs for this model and lists of k items; ``with_bias``: of items with a live bias."""
    rows = _array(model.output_rows(model.item_embedding))
    bias = _array(model.output_bias)
    return BundleGraphs(
        encode_graph(model),
        rank_graph(rows, bias, k, with_bias),
        rank_int8_graph(rows, bias, k, with_bias),
    )


def encode_graph(model: SessionModel) -> onnx.ModelProto:
    """One click for each of B sessions: a query for the list, and the state after it.

    Inputs ``item_index`` int64[B], ``context`` int32[B, F] where the model has context fields, and
    ``state`` float[B, S]; outputs ``query`` float[B, D] and ``state_out`` float[B, S]. What depends
    only on the weights is computed here. Plain operations: ONNX Runtime's GRU operator is no
    faster and ends the process when B is 0.
    """
    config = model.config
    graph = Graph()
    n_fields, state_size = len(config.context), model.state_size
    columns = [graph.add("Gather", "context", np.array(n), axis=1) for n in range(n_fields)]
    x = graph.add("Gather", _array(model.input_table), "item_index")
    for table, column in zip(model.multiplied, config.columns("multiply"), strict=True):
        x = graph.add("Mul", x, graph.add("Gather", _array(1 + table), columns[column]))
    item = x
    concatenated = zip(model.concatenated, config.columns("concat"), strict=True)
    embedded = [graph.add("Gather", _array(table), columns[c]) for table, c in concatenated]
    if embedded:
        x = graph.add("Concat", x, *embedded, axis=1)
    layers = cast(list[RecurrentLayer | WindowLayer], list(model.layers))
    before = graph.split("state", [layer.state_size for layer in layers])
    after = []
    for n, (layer, state) in enumerate(zip(layers, before, strict=True)):
        below = x if n else item
        if isinstance(layer, WindowLayer):
            x, state = _window(graph, layer, x, state)
        else:
            transitions = [columns[c] for c in config.transition_columns]
            x, state = _recurrent(graph, layer, x, state, transitions)
        after.append(state)
        is_as_wide = n > 0 or model.input_table.shape[1] == config.hidden_size
        if config.residual and is_as_wide:
            x = graph.add("Add", x, below)
    if config.normalise:
        tiny = np.array([1e-12], np.float32)
        squares = graph.add("ReduceSumSquare", x, np.array([1]), keepdims=1)
        length = graph.add("Sqrt", graph.add("Add", squares, tiny))
        factor = np.array([config.normalise], np.float32)
        x = graph.add("Mul", x, graph.add("Div", factor, length))
    graph.add("Identity", x, output="query")
    graph.add("Concat", *after, axis=1, output="state_out")
    context = [value_info("context", TensorProto.INT32, "B", n_fields)] if n_fields else []
    return graph.model(
        [
            value_info("item_index", TensorProto.INT64, "B"),
            *context,
            value_info("state", TensorProto.FLOAT, "B", state_size),
        ],
        [
            value_info("query", TensorProto.FLOAT, "B", config.hidden_size),
            value_info("state_out", TensorProto.FLOAT, "B", state_size),
        ],
    )


def _window(graph: Graph, layer: WindowLayer, x: str, state: str) -> tuple[str, str]:
    """`WindowLayer.forward`: output and state."""
    inputs = graph.add("Concat", x, state, axis=1)
    output = graph.add("Tanh", _linear(graph, inputs, layer.weight, layer.bias))
    first, end, axis = np.array([0]), np.array([layer.state_size]), np.array([1])
    return output, graph.add("Slice", inputs, first, end, axis)


def _recurrent(
    graph: Graph, layer: RecurrentLayer, x: str, state: str, transitions: list[str]
) -> tuple[str, str]:
    """`RecurrentLayer.forward`: output and state. ``transitions``: columns of the context."""
    size = layer.hidden_size
    parts = graph.split(state, [size] * (layer.state_size // size))
    hidden = parts[0]
    if hasattr(layer, "weight_input"):
        x_gates = _linear(graph, x, layer.weight_input, layer.bias_input)
    else:
        x_gates = graph.add("Add", x, _array(layer.bias_input))
    h_gates = _linear(graph, hidden, layer.weight_hidden, layer.bias_hidden)
    if hasattr(layer, "transition_context"):
        part = _low_rank(graph, layer.transition_context, hidden, transitions)
        h_gates = graph.add("Add", h_gates, part)
    if layer.cell == "gru":
        output = _gru(graph, x_gates, h_gates, hidden, size)
        return output, output
    gates = graph.add("Add", x_gates, h_gates)
    if layer.cell == "rnn":
        output = graph.add("Tanh", gates)
        return output, output
    return _lstm(graph, gates, parts[1], size)


def _gru(graph: Graph, x_gates: str, h_gates: str, hidden: str, size: int) -> str:
    """`cells._gru`: Cho et al. (arXiv 1406.1078), reset gate behind the product."""
    x_reset, x_update, x_new = graph.split(x_gates, [size] * 3)
    h_reset, h_update, h_new = graph.split(h_gates, [size] * 3)
    reset = graph.add("Sigmoid", graph.add("Add", x_reset, h_reset))
    update = graph.add("Sigmoid", graph.add("Add", x_update, h_update))
    new = graph.add("Tanh", graph.add("Add", x_new, graph.add("Mul", reset, h_new)))
    change = graph.add("Mul", update, graph.add("Sub", hidden, new))
    return graph.add("Add", new, change)


def _lstm(graph: Graph, gates: str, memory: str, size: int) -> tuple[str, str]:
    """`cells._lstm`: its state is hidden and cell."""
    write, forget, new, read = graph.split(gates, [size] * 4)
    kept = graph.add("Mul", graph.add("Sigmoid", forget), memory)
    written = graph.add("Mul", graph.add("Sigmoid", write), graph.add("Tanh", new))
    memory = graph.add("Add", kept, written)
    output = graph.add("Mul", graph.add("Sigmoid", read), graph.add("Tanh", memory))
    return output, graph.add("Concat", output, memory, axis=1)


def _low_rank(graph: Graph, matrices: LowRank, x: str, numbers: Iterable[str]) -> str:
    """`LowRank.forward`: up (down x * the sum of the fields' scales)."""
    scales = [
        graph.add("Gather", _array(table), number)
        for table, number in zip(matrices.scales, numbers, strict=True)
    ]
    scale = scales[0] if len(scales) == 1 else graph.add("Sum", *scales)
    narrow = graph.add("MatMul", x, _array(matrices.down.T))
    return graph.add("MatMul", graph.add("Mul", narrow, scale), _array(matrices.up.T))


def _linear(graph: Graph, x: str, weight: Tensor, bias: Tensor) -> str:
    return graph.add("Gemm", x, _array(weight), _array(bias), transB=1)


def _array(tensor: Tensor) -> Float32[np.ndarray, "..."]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
