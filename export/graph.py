"""The bundle's two graphs, written out from arrays: a click into hidden, hidden into a list.

By hand and not by PyTorch's exporter, which took 5 s and more a model and gave the same encode
graph, while nine tenths of a click's compute are the rank graph, whose operations are chosen by
measurement. ``export/parity.py`` holds both to the model's own forward pass.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from jaxtyping import Float32
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 20
"""Of both graphs; ONNX Runtime 1.18 and later read it with this IR version."""
IR_VERSION = 10
BLOCK = 64
"""Items whose scores are looked at together; 32 to 128 are equally fast."""

node = helper.make_node


class GRULayerWeights(NamedTuple):
    """One layer's weights, packed (reset, update, new) as in ``train.model.GRULayer``."""

    weight_input: Float32[np.ndarray, "3*H I"]
    weight_hidden: Float32[np.ndarray, "3*H H"]
    bias_input: Float32[np.ndarray, "3*H"]
    bias_hidden: Float32[np.ndarray, "3*H"]


def encode_graph(
    input_table: Float32[np.ndarray, "N H"], layers: Sequence[GRULayerWeights]
) -> onnx.ModelProto:
    """``item_index`` int64[B] and ``hidden`` float[L, B, H] to ``hidden_out`` float[L, B, H].

    One click for each of B sessions. Plain operations: ONNX Runtime's GRU operator is no faster
    and ends the process when B is 0.
    """
    n_layers, hidden_size = len(layers), input_table.shape[1]
    constants = {"input_table": input_table, "first": np.array([0])}
    nodes = [
        node("Gather", ["input_table", "item_index"], ["x_0"]),
        node("Split", ["hidden"], [f"slice_{n}" for n in range(n_layers)], num_outputs=n_layers),
    ]
    for n, layer in enumerate(layers):
        constants |= {f"{name}_{n}": weight for name, weight in layer._asdict().items()}
        nodes += [
            node("Squeeze", [f"slice_{n}", "first"], [f"before_{n}"]),
            *_gru_layer(n, x=f"x_{n}", hidden=f"before_{n}", after=f"x_{n + 1}"),
            node("Unsqueeze", [f"x_{n + 1}", "first"], [f"after_{n}"]),
        ]
    nodes.append(node("Concat", [f"after_{n}" for n in range(n_layers)], ["hidden_out"], axis=0))
    hidden, hidden_out = (
        float_value(name, n_layers, "B", hidden_size) for name in ("hidden", "hidden_out")
    )
    item_index = helper.make_tensor_value_info("item_index", TensorProto.INT64, ["B"])
    return build_model(nodes, constants, [item_index, hidden], [hidden_out])


def _gru_layer(n: int, x: str, hidden: str, after: str) -> list[NodeProto]:
    """Cho et al. (arXiv 1406.1078), the reset gate behind the recurrent product."""
    input_gates, hidden_gates = (
        [f"{side}_{gate}_{n}" for gate in ("reset", "update", "new")] for side in ("x", "h")
    )
    (x_reset, x_update, x_new), (h_reset, h_update, h_new) = input_gates, hidden_gates
    reset, update, new = f"reset_{n}", f"update_{n}", f"new_{n}"
    return [
        node("Gemm", [x, f"weight_input_{n}", f"bias_input_{n}"], [f"x_gates_{n}"], transB=1),
        node(
            "Gemm", [hidden, f"weight_hidden_{n}", f"bias_hidden_{n}"], [f"h_gates_{n}"], transB=1
        ),
        node("Split", [f"x_gates_{n}"], input_gates, axis=1, num_outputs=3),
        node("Split", [f"h_gates_{n}"], hidden_gates, axis=1, num_outputs=3),
        node("Add", [x_reset, h_reset], [f"{reset}_sum"]),
        node("Sigmoid", [f"{reset}_sum"], [reset]),
        node("Add", [x_update, h_update], [f"{update}_sum"]),
        node("Sigmoid", [f"{update}_sum"], [update]),
        node("Mul", [reset, h_new], [f"{new}_kept"]),
        node("Add", [x_new, f"{new}_kept"], [f"{new}_sum"]),
        node("Tanh", [f"{new}_sum"], [new]),
        # new + update * (hidden - new)
        node("Sub", [hidden, new], [f"{after}_change"]),
        node("Mul", [update, f"{after}_change"], [f"{after}_part"]),
        node("Add", [new, f"{after}_part"], [after]),
    ]


def rank_graph(
    item_embedding: Float32[np.ndarray, "N H"], output_bias: Float32[np.ndarray, "N"], k: int
) -> onnx.ModelProto:
    """``hidden`` float[B, H] to ``top_index`` int32[B, k] and ``top_score`` float[B, k].

    Best first; of equal scores the lower index first, and inside too. Exact: the scores are cut
    into blocks of neighbours, and only the k blocks with the largest maxima are searched. An item
    of the true list has fewer than k blocks before its own, since each of those holds an item
    that comes before it.

    Measured per session at 43,097 items, H = 100, k = 20, 16 sessions at once, one core: 131 us
    for MatMul, Add and TopK as they come, 123 us with the bias inside the product, 98 us with
    the blocks as well; the product alone is 90.
    """
    n_items, hidden_size = item_embedding.shape
    n_blocks = max(k, -(-n_items // BLOCK))
    # Columns are items, which the matrix product reads in order; the last row is the bias, met by
    # a 1 that is put behind hidden. The columns that fill the last block are never among the best.
    weight = np.zeros((hidden_size + 1, n_blocks * BLOCK), np.float32)
    weight[:-1, :n_items] = item_embedding.T
    weight[-1] = np.finfo(np.float32).min
    weight[-1, :n_items] = output_bias
    constants = {
        "weight": weight,
        "behind": np.array([0, 0, 0, 1]),
        "one": np.array(1, np.float32),
        "by_block": np.array([0, n_blocks, BLOCK]),
        "flat": np.array([0, k * BLOCK]),
        "last_axis": np.array([2]),
        "k": np.array([k]),
        "block": np.array(BLOCK),
    }
    nodes = [
        node("Pad", ["hidden", "behind", "one"], ["hidden_and_one"]),
        node("MatMul", ["hidden_and_one", "weight"], ["all_scores"]),
        node("Reshape", ["all_scores", "by_block"], ["scores"]),
        node("ReduceMax", ["scores", "last_axis"], ["block_best"], keepdims=0),
        node("TopK", ["block_best", "k"], ["_maxima", "best_blocks"]),
        # Back in the catalogue's order, so that among ties the lower index still comes first.
        node("TopK", ["best_blocks", "k"], ["blocks", "_ranks"], largest=0),
        node("Unsqueeze", ["blocks", "last_axis"], ["block_rows"]),
        node("GatherND", ["scores", "block_rows"], ["block_scores"], batch_dims=1),
        node("Reshape", ["block_scores", "flat"], ["candidates"]),
        node("TopK", ["candidates", "k"], ["top_score", "place"]),
        # place = (which of the k blocks) * BLOCK + (where in it)
        node("Div", ["place", "block"], ["nth_block"]),
        node("Mod", ["place", "block"], ["within"]),
        node("GatherElements", ["blocks", "nth_block"], ["number"], axis=1),
        node("Mul", ["number", "block"], ["first"]),
        node("Add", ["first", "within"], ["index"]),
        node("Cast", ["index"], ["top_index"], to=TensorProto.INT32),
    ]
    top_index = helper.make_tensor_value_info("top_index", TensorProto.INT32, ["B", k])
    outputs = [top_index, float_value("top_score", "B", k)]
    return build_model(nodes, constants, [float_value("hidden", "B", hidden_size)], outputs)


def build_model(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, np.ndarray],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
) -> onnx.ModelProto:
    """A checked ONNX model of these operations; ``constants`` are its weights by name."""
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "bundle", inputs, outputs, tensors)
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


def float_value(name: str, *shape: int | str) -> ValueInfoProto:
    """A float32 input or output; a size that is a name is free."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
