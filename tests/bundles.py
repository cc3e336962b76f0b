"""Real small bundles for tests and benchmarks, built in milliseconds and without PyTorch."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stream.bundle import Manifest, Parity, PopularItem, TrainingData, write_bundle

OPSET = 20
IR_VERSION = 10


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
        rank = _dense_rank(embedding, _normal(random, (n_items,), 0.1), k)
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
    hidden_size = embedding.shape[1]
    weights = {"embedding": embedding, "zero": np.array([0])}
    nodes = [
        helper.make_node("Gather", ["embedding", "item_index"], ["clicked"]),
        helper.make_node("Unsqueeze", ["clicked", "zero"], ["input_0"]),
        helper.make_node(
            "Split", ["hidden"], [f"h_{n}" for n in range(n_layers)], axis=0, num_outputs=n_layers
        ),
    ]
    for layer in range(n_layers):
        for name in ("W", "R"):
            weights[f"{name}_{layer}"] = _normal(
                random, (1, 3 * hidden_size, hidden_size), 1 / np.sqrt(hidden_size)
            )
        weights[f"b_{layer}"] = _normal(random, (1, 6 * hidden_size), 0.1)
        nodes.append(
            helper.make_node(
                "GRU",
                [f"input_{layer}", f"W_{layer}", f"R_{layer}", f"b_{layer}", "", f"h_{layer}"],
                ["", f"input_{layer + 1}"],
                hidden_size=hidden_size,
                linear_before_reset=1,
            )
        )
    steps = [f"input_{layer + 1}" for layer in range(n_layers)]
    nodes.append(helper.make_node("Concat", steps, ["hidden_out"], axis=0))
    return _encode_model(nodes, weights, n_layers, hidden_size)


def _counting_encode(n_layers: int, hidden_size: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["hidden", "one"], ["hidden_out"])]
    return _encode_model(nodes, {"one": np.array([1], np.float32)}, n_layers, hidden_size)


def _dense_rank(embedding: np.ndarray, bias: np.ndarray, k: int) -> onnx.ModelProto:
    weights = {"items": np.ascontiguousarray(embedding.T), "bias": bias, "k": np.array([k])}
    nodes = [
        helper.make_node("MatMul", ["hidden", "items"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["scores"]),
        helper.make_node("TopK", ["scores", "k"], ["top_score", "top"], axis=1),
        helper.make_node("Cast", ["top"], ["top_index"], to=TensorProto.INT32),
    ]
    return _rank_model(nodes, weights, embedding.shape[1], k)


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
    return _rank_model(nodes, weights, hidden_size, k)


def _encode_model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], n_layers: int, hidden_size: int
) -> onnx.ModelProto:
    item_index = helper.make_tensor_value_info("item_index", TensorProto.INT64, ["B"])
    hidden, hidden_out = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [n_layers, "B", hidden_size])
        for name in ("hidden", "hidden_out")
    )
    return _model(nodes, weights, [item_index, hidden], [hidden_out])


def _rank_model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], hidden_size: int, k: int
) -> onnx.ModelProto:
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["B", hidden_size])
    top_index = helper.make_tensor_value_info("top_index", TensorProto.INT32, ["B", k])
    top_score = helper.make_tensor_value_info("top_score", TensorProto.FLOAT, ["B", k])
    return _model(nodes, weights, [hidden], [top_index, top_score])


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
