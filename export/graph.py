"""How a bundle's graphs are written out, and those that make a query into a list.

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
SPARE = 20
"""Items that rank_int8.onnx scores exactly beyond the list's length; half as many as are listed
where that is more. With trained weights 12 were enough for every one of 30,000 places in lists of
20. Of random weights in lists of 100, 20 found .9975, 30 .9997 and 40 or 50 all."""
SHORT = 20
"""Longer lists are not sorted where they are sorted again later, which saves 3 to 5 % of the time
(40 to 100 items). Lists of up to so many gain less; their graphs keep their bytes, and the bundles
their names."""
QUERY_LEVELS, ITEM_LEVELS = 63, 127
"""Integers on either side of 0. A processor without VNNI adds two products in 16 bits, which hold
2 x 127 x 127 (the query is sent as 1 to 127) and not 2 x 255 x 127. The items get the eighth bit:
so rounded, the lists were nearer to the exact ones than the other way round."""


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

    def top(self, value: str, k: int, largest: int = 1, *, ordered: bool = True) -> tuple[str, str]:
        """The best k along the last axis, best first unless not ``ordered``, and their places."""
        best, where = (f"{value}_{name}_{len(self._nodes)}" for name in ("top", "where"))
        order = {} if ordered else {"sorted": 0}
        self._add("TopK", (value, np.array([k])), [best, where], largest=largest, **order)
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
    output_rows: Float32[np.ndarray, "N D"],
    output_bias: Float32[np.ndarray, "N"],
    k: int,
    with_bias: bool = False,
) -> onnx.ModelProto:
    """``query`` float[B, D] to ``top_index`` int32[B, k] and ``top_score`` float[B, k].

    ``with_bias`` there is an input ``bias`` float[N] too, added to the scores of all B queries.

    Best first; of equal scores the lower index first, and inside too. Exact: the scores are cut
    into blocks of neighbours, and only the k blocks with the largest maxima are searched. An item
    of the true list has fewer than k blocks before its own, since each of those holds an item
    that comes before it.

    Measured per session at 43,097 items, H = 100, k = 20, 16 sessions at once, one core: 131 us
    for MatMul, Add and TopK as they come, 123 us with the bias inside the product, 98 us with
    the blocks as well; the product alone is 90. An input of biases adds 5 to 12.
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
    last_axis = np.array([2])
    query_and_one = graph.add("Pad", "query", np.array([0, 0, 0, 1]), np.array(1, np.float32))
    if with_bias:
        bias = graph.add("Pad", "bias", np.array([0, n_blocks * BLOCK - n_items]))
        all_scores = graph.add("Gemm", query_and_one, graph.constant(weight, "weight"), bias)
    else:
        all_scores = graph.add("MatMul", query_and_one, graph.constant(weight, "weight"))
    scores = graph.add("Reshape", all_scores, np.array([0, n_blocks, BLOCK]))
    maxima = graph.add("ReduceMax", scores, last_axis, keepdims=0)
    _, best_blocks = graph.top(maxima, k, ordered=k <= SHORT)
    # Back in the catalogue's order, so that among ties the lower index still comes first.
    blocks, _ = graph.top(best_blocks, k, largest=0)
    rows = graph.add("Unsqueeze", blocks, last_axis)
    block_scores = graph.add("GatherND", scores, rows, batch_dims=1)
    candidates = graph.add("Reshape", block_scores, np.array([0, k * BLOCK]))
    top_score, place = graph.top(candidates, k)
    graph.add("Identity", top_score, output="top_score")
    index = _item_index(graph, blocks, place)
    graph.add("Cast", index, to=TensorProto.INT32, output="top_index")
    return graph.model(rank_inputs(query_size, n_items, with_bias), rank_outputs(k))


def n_rescored(k: int) -> int:
    """Items that rank_int8.onnx scores exactly for a list of k."""
    return k + max(SPARE, k // 2)


def rank_int8_graph(
    output_rows: Float32[np.ndarray, "N D"],
    output_bias: Float32[np.ndarray, "N"],
    k: int,
    with_bias: bool = False,
) -> onnx.ModelProto | None:
    """The graph of `rank_graph` with a product of integers, which may miss an item of the list.

    Approximate scores of all items choose the candidates, and these are scored in float32. Scales:
    one for all items, and one for each query, so that a list does not depend on its neighbours in
    the batch. The output bias is one more column. An input of biases is added in float32, to the
    approximate scores as well as to the exact ones. The items behind the last whole block are
    candidates of every query. None for a catalogue of fewer blocks than candidates, where nothing
    is saved.

    Measured as for `rank_graph`, on a processor with VNNI: 53 us a session at 16 sessions at once
    and 47 at 32, of which the product is 18, the maxima 11, and the best of the best blocks 9
    (float32: 85 and 89). An input of biases adds 13 to 17.
    """
    n_items, query_size = output_rows.shape
    candidates, n_blocks = n_rescored(k), n_items // BLOCK
    if n_blocks < candidates:
        return None
    in_blocks, last_axis = n_blocks * BLOCK, np.array([2])
    largest_row, largest_bias = (float(np.abs(a).max()) for a in (output_rows, output_bias))
    # The query's last number, which meets the bias; so large that the biases fill their integers.
    unit = largest_bias / largest_row if largest_row else 1.0
    rows = np.column_stack([output_rows, output_bias])
    scaled = np.column_stack([output_rows, output_bias / unit if unit else output_bias])
    item_step = (np.abs(scaled).max() or 1.0) / ITEM_LEVELS
    weight = np.rint(scaled[:in_blocks].T / item_step).astype(np.int8)
    graph = Graph()
    query_and_one = graph.add("Pad", "query", np.array([0, 0, 0, 1]), np.array(1, np.float32))
    query_and_unit = graph.add("Pad", "query", np.array([0, 0, 0, 1]), np.array(unit, np.float32))
    largest = graph.add("ReduceMax", graph.add("Abs", query_and_unit), np.array([1]))
    largest = graph.add("Max", largest, np.array(np.finfo(np.float32).tiny))
    steps = graph.add("Div", query_and_unit, largest)
    steps = graph.add("Round", graph.add("Mul", steps, np.array(QUERY_LEVELS, np.float32)))
    zero = QUERY_LEVELS + 1
    shifted = graph.add("Add", steps, np.array(zero, np.float32))
    levels = graph.add("Cast", shifted, to=TensorProto.UINT8)
    weight_name = graph.constant(weight, "weight_int8")
    all_scores = graph.add("MatMulInteger", levels, weight_name, np.array(zero, np.uint8))
    if with_bias:
        # Two more passes over all scores, 4 and 6 us a session. In integers it would be three: a
        # query's scale, applied to all biases.
        unit_score = np.array(item_step / QUERY_LEVELS, np.float32)
        scale = graph.add("Mul", graph.add("Squeeze", largest, np.array([1])), unit_score)
        all_scores = graph.add("DequantizeLinear", all_scores, scale, axis=0)
        first, end, axis = np.array([0]), np.array([in_blocks]), np.array([0])
        all_scores = graph.add("Add", all_scores, graph.add("Slice", "bias", first, end, axis))
    scores = graph.add("Reshape", all_scores, np.array([0, n_blocks, BLOCK]))
    maxima = graph.add("ReduceMax", scores, last_axis, keepdims=0)
    # Best block first: most of what follows is then worse than what has been found. And equal ones
    # in the catalogue's order, so that of too many ties those with a lower index are candidates.
    _, blocks = graph.top(maxima, candidates)
    block_scores = graph.add(
        "GatherND", scores, graph.add("Unsqueeze", blocks, last_axis), batch_dims=1
    )
    in_best = graph.add("Reshape", block_scores, np.array([0, candidates * BLOCK]))
    _, place = graph.top(in_best, candidates, ordered=k <= SHORT)
    # Into the catalogue's order, so that among ties the lower index comes first.
    index, _ = graph.top(_item_index(graph, blocks, place), candidates, largest=0)
    if n_rest := n_items - in_blocks:
        batch = graph.add("Shape", "query", end=1)
        shape = graph.add("Concat", batch, np.array([n_rest]), axis=0)
        rest = graph.add("Expand", np.arange(in_blocks, n_items)[None], shape)
        index = graph.add("Concat", index, rest, axis=1)
    exact_rows = graph.add("Gather", graph.constant(rows, "weight"), index)
    column = graph.add("Unsqueeze", query_and_one, last_axis)
    exact = graph.add("Squeeze", graph.add("MatMul", exact_rows, column), last_axis)
    if with_bias:
        exact = graph.add("Add", exact, graph.add("Gather", "bias", index))
    top_score, where = graph.top(exact, k)
    graph.add("Identity", top_score, output="top_score")
    top_index = graph.add("GatherElements", index, where, axis=1)
    graph.add("Cast", top_index, to=TensorProto.INT32, output="top_index")
    return graph.model(rank_inputs(query_size, n_items, with_bias), rank_outputs(k))


def _item_index(graph: Graph, blocks: str, place: str) -> str:
    """item_index of places in a row of blocks: place = (which of them) * BLOCK + (where in it)."""
    size = np.array(BLOCK)
    number = graph.add("GatherElements", blocks, graph.add("Div", place, size), axis=1)
    first = graph.add("Mul", number, size)
    return graph.add("Add", first, graph.add("Mod", place, size))


def rank_inputs(query_size: int, n_items: int, with_bias: bool) -> list[ValueInfoProto]:
    """What a graph that ranks reads."""
    query = value_info("query", TensorProto.FLOAT, "B", query_size)
    return [query, value_info("bias", TensorProto.FLOAT, n_items)] if with_bias else [query]


def rank_outputs(k: int) -> list[ValueInfoProto]:
    """What a graph that ranks returns."""
    return [
        value_info("top_index", TensorProto.INT32, "B", k),
        value_info("top_score", TensorProto.FLOAT, "B", k),
    ]
