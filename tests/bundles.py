"""Real bundles of any size for tests and benchmarks, built in milliseconds without PyTorch.

The rank graph is the one that export writes, so that its speed is production's.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.rank import IR_VERSION, OPSET, rank_graph
from stream.bundle import Manifest, Parity, PopularItem, TrainingData, write_bundle


def write_tiny_bundle(
    folder: Path,
    n_items: int = 50,
    hidden_size: int = 8,
    n_layers: int = 1,
    k: int = 5,
    seed: int = 0,
    *,
    constant: bool = False,
    item_ids: Sequence[str] | None = None,
    idle_timeout_s: int | None = 1800,
) -> Path:
    """The folder of a bundle below ``folder``: a GRU with random weights, the same for one seed.

    ``constant`` makes a model that costs next to nothing and counts: ``encode`` adds 1 to every
    component of hidden, so that a click applied twice or not at all shows in the state, and
    ``rank`` always answers items 0 to k - 1 with scores k to 1. ``item_ids`` default to item-0,
    item-1, and so on.
    """
    random = np.random.default_rng(seed)
    if constant:
        encode, rank = _counting_encode(n_layers, hidden_size), _fixed_rank(hidden_size, k)
    else:
        # Shared embedding, as the model: rows near unit length make scores that differ.
        embedding = _normal(random, (n_items, hidden_size), 1 / np.sqrt(hidden_size))
        encode = _gru_encode(random, embedding, n_layers)
        rank = rank_graph(embedding, _normal(random, (n_items,), 0.1), k)
    manifest = Manifest(
        architecture="gru",
        hidden_size=hidden_size,
        n_layers=n_layers,
        n_items=n_items,
        n_recommendations=k,
        idle_timeout_s=idle_timeout_s,
        opset=OPSET,
        training=TrainingData(0, 0, 0, 0, n_items),
        metrics=None,
        parity=Parity(0, 0, 0.0, 0),
        popular=[PopularItem(index, float(k - index)) for index in range(k)],
    )
    with tempfile.TemporaryDirectory() as graphs:
        encode_path, rank_path = Path(graphs, "encode.onnx"), Path(graphs, "rank.onnx")
        onnx.save(encode, encode_path)
        onnx.save(rank, rank_path)
        names = item_ids or [f"item-{index}" for index in range(n_items)]
        return write_bundle(folder, manifest, names, encode_path, rank_path)


def _gru_encode(
    random: np.random.Generator, embedding: np.ndarray, n_layers: int
) -> onnx.ModelProto:
    # Plain operations, as the exporter gives: ONNX Runtime's GRU operator ends the process when
    # it is given no session.
    hidden_size = embedding.shape[1]
    node = helper.make_node
    weights = {"embedding": embedding, "first": np.array([0])}
    nodes = [
        node("Gather", ["embedding", "item_index"], ["x0"]),
        node("Split", ["hidden"], [f"h{n}" for n in range(n_layers)], num_outputs=n_layers),
    ]
    for n in range(n_layers):
        for name in (f"W{n}", f"R{n}"):
            shape, scale = (hidden_size, 3 * hidden_size), 1 / np.sqrt(hidden_size)
            weights[name] = _normal(random, shape, scale)
            weights[f"b{name}"] = _normal(random, (3 * hidden_size,), 0.1)
        nodes += [
            node("Squeeze", [f"h{n}", "first"], [f"g{n}"]),
            node("Gemm", [f"x{n}", f"W{n}", f"bW{n}"], [f"xs{n}"]),
            node("Gemm", [f"g{n}", f"R{n}", f"bR{n}"], [f"gs{n}"]),
            node("Split", [f"xs{n}"], [f"xr{n}", f"xu{n}", f"xn{n}"], axis=1, num_outputs=3),
            node("Split", [f"gs{n}"], [f"gr{n}", f"gu{n}", f"gn{n}"], axis=1, num_outputs=3),
            node("Add", [f"xr{n}", f"gr{n}"], [f"r_in{n}"]),
            node("Sigmoid", [f"r_in{n}"], [f"reset{n}"]),
            node("Add", [f"xu{n}", f"gu{n}"], [f"u_in{n}"]),
            node("Sigmoid", [f"u_in{n}"], [f"update{n}"]),
            node("Mul", [f"reset{n}", f"gn{n}"], [f"kept{n}"]),
            node("Add", [f"xn{n}", f"kept{n}"], [f"n_in{n}"]),
            node("Tanh", [f"n_in{n}"], [f"new{n}"]),
            node("Sub", [f"g{n}", f"new{n}"], [f"old{n}"]),
            node("Mul", [f"update{n}", f"old{n}"], [f"part{n}"]),
            node("Add", [f"new{n}", f"part{n}"], [f"x{n + 1}"]),
            node("Unsqueeze", [f"x{n + 1}", "first"], [f"step{n}"]),
        ]
    nodes.append(node("Concat", [f"step{n}" for n in range(n_layers)], ["hidden_out"], axis=0))
    return _encode_model(nodes, weights, n_layers, hidden_size)


def _counting_encode(n_layers: int, hidden_size: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["hidden", "one"], ["hidden_out"])]
    return _encode_model(nodes, {"one": np.array([1], np.float32)}, n_layers, hidden_size)


def _fixed_rank(hidden_size: int, k: int) -> onnx.ModelProto:
    weights = {
        "index": np.arange(k, dtype=np.int32)[None],
        "score": np.arange(k, 0, -1, dtype=np.float32)[None],
        "one": np.array([1]),
    }
    nodes = [
        helper.make_node("Shape", ["hidden"], ["batch"], end=1),
        helper.make_node("Concat", ["batch", "one"], ["shape"], axis=0),
        helper.make_node("Expand", ["index", "shape"], ["top_index"]),
        helper.make_node("Expand", ["score", "shape"], ["top_score"]),
    ]
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["B", hidden_size])
    top_index = helper.make_tensor_value_info("top_index", TensorProto.INT32, ["B", k])
    top_score = helper.make_tensor_value_info("top_score", TensorProto.FLOAT, ["B", k])
    return _model(nodes, weights, [hidden], [top_index, top_score])


def _encode_model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], n_layers: int, hidden_size: int
) -> onnx.ModelProto:
    item_index = helper.make_tensor_value_info("item_index", TensorProto.INT64, ["B"])
    hidden, hidden_out = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [n_layers, "B", hidden_size])
        for name in ("hidden", "hidden_out")
    )
    return _model(nodes, weights, [item_index, hidden], [hidden_out])


def _model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "bundle", inputs, outputs, initializers)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model)
    return model


def _normal(random: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    return (random.standard_normal(shape) * scale).astype(np.float32)
