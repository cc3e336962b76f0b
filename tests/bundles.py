"""Real bundles of any size for tests and benchmarks, built in milliseconds without PyTorch.

The graphs are the ones that export writes, so that their speed is production's.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.graph import (
    OPSET,
    GRULayerWeights,
    build_model,
    encode_graph,
    float_value,
    rank_graph,
)
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
        layers = [_gru_layer(random, hidden_size) for _ in range(n_layers)]
        encode = encode_graph(embedding, layers)
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


def _gru_layer(random: np.random.Generator, hidden_size: int) -> GRULayerWeights:
    scale, gates = 1 / np.sqrt(hidden_size), 3 * hidden_size
    return GRULayerWeights(
        weight_input=_normal(random, (gates, hidden_size), scale),
        weight_hidden=_normal(random, (gates, hidden_size), scale),
        bias_input=_normal(random, (gates,), 0.1),
        bias_hidden=_normal(random, (gates,), 0.1),
    )


def _counting_encode(n_layers: int, hidden_size: int) -> onnx.ModelProto:
    item_index = helper.make_tensor_value_info("item_index", TensorProto.INT64, ["B"])
    hidden, hidden_out = (
        float_value(name, n_layers, "B", hidden_size) for name in ("hidden", "hidden_out")
    )
    nodes = [helper.make_node("Add", ["hidden", "one"], ["hidden_out"])]
    one = np.array([1], np.float32)
    return build_model(nodes, {"one": one}, [item_index, hidden], [hidden_out])


def _fixed_rank(hidden_size: int, k: int) -> onnx.ModelProto:
    constants = {
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
    top_index = helper.make_tensor_value_info("top_index", TensorProto.INT32, ["B", k])
    outputs = [top_index, float_value("top_score", "B", k)]
    return build_model(nodes, constants, [float_value("hidden", "B", hidden_size)], outputs)


def _normal(random: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    return (random.standard_normal(shape) * scale).astype(np.float32)
