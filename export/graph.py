"""How a bundle's graphs are written out, and the second of them: a query into a list.

By hand and not by PyTorch's exporter, which took 5 s and more a model and gave the same encode
graph, while nine tenths of a click's compute are the rank graph, whose operations are chosen by
measurement. ``export/parity.py`` holds both to the model's own forward pass.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float32
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 20
"""Of both graphs; ONNX Runtime 1.18 and later read it with this IR version."""
IR_VERSION = 10
BLOCK = 64
"""Items whose scores are looked at together; 32 to 128 are equally fast."""


class Graph:
    """Operations and weights of a graph in the making. A value is known by its name."""

    def __init__(self) -> None:
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def constant(self, array: np.ndarray, name: str = "") -> str:
        """Keep an array under a name (default: the next number)."""
        name = name or f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def add(
        self, operation: str, *inputs: str | np.ndarray, output: str = "", **attributes: Any
    ) -> str:
        """Add an operation over values and constant arrays; returns its output's name."""
        name = output or f"{operation}_{len(self._nodes)}"
        self._add(operation, inputs, [name], **attributes)
        return name

    def split(self, value: str, sizes: Sequence[int]) -> list[str]:
        """Cut a value's second axis into parts of these sizes."""
        if len(sizes) == 1:
            return [value]
        names = [f"{value}_part_{n}" for n in range(len(sizes))]
        self._add("Split", (value, np.array(sizes)), names, axis=1)
        return names

    def top(self, value: str, k: int, largest: int = 1) -> tuple[str, str]:
        """The best k along the last axis, best first, and where they stand."""
        best, where = (f"{value}_{name}_{len(self._nodes)}" for name in ("top", "where"))
        self._add("TopK", (value, np.array([k])), [best, where], largest=largest)
        return best, where

    def _add(
        self,
        operation: str,
        inputs: Sequence[str | np.ndarray],
        outputs: Sequence[str],
        **attributes: Any,
    ) -> None:
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        self._nodes.append(helper.make_node(operation, names, outputs, **attributes))

    def model(
        self, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
    ) -> onnx.ModelProto:
        """The checked ONNX model of all that was added."""
        graph = helper.make_graph(self._nodes, "bundle", inputs, outputs, self._constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model


def value_info(name: str, kind: int, *shape: int | str) -> ValueInfoProto:
    """An input or output; a size that is a name is free."""
    return helper.make_tensor_value_info(name, kind, shape)


def rank_graph(
    output_rows: Float32[np.ndarray, "N D"], output_bias: Float32[np.ndarray, "N"], k: int
) -> onnx.ModelProto:
    """``query`` float[B, D] to ``top_index`` int32[B, k] and ``top_score`` float[B, k].

    Best first; of equal scores the lower index first, and inside too. Exact: the scores are cut
    into blocks of neighbours, and only the k blocks with the largest maxima are searched. An item
    of the true list has fewer than k blocks before its own, since each of those holds an item
    that comes before it.

    Measured per session at 43,097 items, H = 100, k = 20, 16 sessions at once, one core: 131 us
    for MatMul, Add and TopK as they come, 123 us with the bias inside the product, 98 us with
    the blocks as well; the product alone is 90.
    """
    n_items, query_size = output_rows.shape
    n_blocks = max(k, -(-n_items // BLOCK))
    # Columns are items, which the matrix product reads in order; the last row is the bias, met by
    # a 1 that is put behind the query. The columns that fill the last block are never among the
    # best.
    weight = np.zeros((query_size + 1, n_blocks * BLOCK), np.float32)
    weight[:-1, :n_items] = output_rows.T
    weight[-1] = np.finfo(np.float32).min
    weight[-1, :n_items] = output_bias
    graph = Graph()
    size, last_axis = np.array(BLOCK), np.array([2])
    query_and_one = graph.add("Pad", "query", np.array([0, 0, 0, 1]), np.array(1, np.float32))
    all_scores = graph.add("MatMul", query_and_one, graph.constant(weight, "weight"))
    scores = graph.add("Reshape", all_scores, np.array([0, n_blocks, BLOCK]))
    maxima = graph.add("ReduceMax", scores, last_axis, keepdims=0)
    _, best_blocks = graph.top(maxima, k)
    # Back in the catalogue's order, so that among ties the lower index still comes first.
    blocks, _ = graph.top(best_blocks, k, largest=0)
    rows = graph.add("Unsqueeze", blocks, last_axis)
    block_scores = graph.add("GatherND", scores, rows, batch_dims=1)
    candidates = graph.add("Reshape", block_scores, np.array([0, k * BLOCK]))
    top_score, place = graph.top(candidates, k)
    graph.add("Identity", top_score, output="top_score")
    # place = (which of the k blocks) * BLOCK + (where in it)
    number = graph.add("GatherElements", blocks, graph.add("Div", place, size), axis=1)
    first = graph.add("Mul", number, size)
    index = graph.add("Add", first, graph.add("Mod", place, size))
    graph.add("Cast", index, to=TensorProto.INT32, output="top_index")
    return graph.model(
        [value_info("query", TensorProto.FLOAT, "B", query_size)],
        [
            value_info("top_index", TensorProto.INT32, "B", k),
            value_info("top_score", TensorProto.FLOAT, "B", k),
        ],
    )
