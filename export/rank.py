"""The rank graph: hidden to the K best items, written out by hand.

Nine tenths of a click's compute are spent here, so that the operations are chosen by measurement
and not by an exporter. Per session at 43,097 items, H = 100, K = 20, batches of 16 and one core:
131 us for MatMul, Add and TopK as they come; 123 us with the bias inside the product; 98 us with
TopK in two stages, of which the product is 90.
"""

import numpy as np
import onnx
from jaxtyping import Float32
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
"""Of both graphs. ONNX Runtime since 1.17 reads it."""
IR_VERSION = 10
BLOCK = 64
"""Items whose scores are looked at together; 32 to 128 are equally fast."""


def rank_graph(
    item_embedding: Float32[np.ndarray, "N H"], output_bias: Float32[np.ndarray, "N"], k: int
) -> onnx.ModelProto:
    """``hidden`` float[B, H] to ``top_index`` int32[B, k] and ``top_score`` float[B, k].

    Best first; of equal scores the lower index first, and inside too. Exact: the scores are cut
    into blocks of neighbours, and only the k blocks with the largest maxima are searched. An item
    of the true list has fewer than k blocks before its own, since each of those holds an item
    that comes before it.
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
    node = helper.make_node
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
    graph = helper.make_graph(
        nodes,
        "rank",
        inputs=[helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["B", hidden_size])],
        outputs=[
            helper.make_tensor_value_info("top_index", TensorProto.INT32, ["B", k]),
            helper.make_tensor_value_info("top_score", TensorProto.FLOAT, ["B", k]),
        ],
        initializer=[numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model
