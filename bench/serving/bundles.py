"""Real bundles of any size and kind for benchmarks and tests, made in milliseconds.

The graphs are those that export writes, so they are as fast as in production.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto

from export.encode import BundleGraphs, bundle_graphs
from export.graph import OPSET, Graph, rank_inputs, rank_outputs, value_info
from stream.live.rules import PREFIXES, Rules
from stream.model.bundle import Live, Manifest, Parity, PopularItem, TrainingData, write_bundle
from train.network.model import ModelConfig, SessionModel


def random_model(config: ModelConfig, seed: int = 0) -> SessionModel:
    """A model with random weights, the same for one seed, in evaluation mode.

    No weight keeps a value that could hide a mistake, such as a bias of 0; rows near unit length
    make scores that differ, and every context value changes them.
    """
    model = SessionModel(config).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 0.1 if "bias" in name else 1 / weight.shape[-1] ** 0.5
            if name.startswith("concatenated") or "scales" in name or "decay" in name:
                scale = 1.0
            weight.normal_(0, scale, generator=random)
    return model


def even_live(n_candidates: int, bias: float = 0.0) -> Live:
    """What live lists need, of a log that changes within the hour; every source counts the same."""
    n_sources = len(Rules(3_600_000, 225_000, excludes_seen=False).sources) + 1
    weights = [[1 / n_sources] * n_sources for _ in range(PREFIXES)]
    return Live(3_600, 225, False, n_candidates, bias, weights)


def write_tiny_bundle(
    folder: Path,
    n_items: int = 50,
    hidden_size: int = 8,
    n_layers: int = 1,
    k: int = 5,
    seed: int = 0,
    *,
    constant: bool = False,
    int8: bool = True,
    item_ids: Sequence[str] | None = None,
    idle_timeout_s: int | None = 1800,
    allowed_lateness_s: int = 600,
    event_types: tuple[str, ...] = (),
    live: Live | None = None,
    **config: Any,
) -> Path:
    """The folder of a bundle below ``folder``: a model with random weights, the same for one seed.

    ``config`` is the model's (``train.network.model.ModelConfig``); the default is a GRU.
    ``constant`` makes a model that costs next to nothing and counts: ``encode`` adds 1 to every
    component of the state, which reveals a click that is applied twice or not at all, and ``rank``
    always answers items 0 to k - 1 with scores k to 1 (of ``live``, n_candidates in place of k).
    Without ``int8`` it is a bundle that older workers read. ``item_ids`` default to item-0, item-1,
    and so on.
    """
    config |= {"n_items": n_items, "hidden_size": hidden_size, "n_layers": n_layers}
    model = random_model(ModelConfig(**config), seed)
    manifest = Manifest(
        architecture=model.config.cell,
        hidden_size=hidden_size,
        n_layers=n_layers,
        state_size=model.state_size,
        query_size=hidden_size,
        n_items=n_items,
        n_recommendations=k,
        idle_timeout_s=idle_timeout_s,
        allowed_lateness_s=allowed_lateness_s,
        event_types=event_types,
        live=live,
        context=list(model.config.context),
        opset=OPSET,
        training=TrainingData(0, 0, 0, 0, n_items),
        metrics=None,
        parity=Parity(0, 0, 0.0, 0.0, 0),
        popular=[PopularItem(index, float(k - index)) for index in range(k)],
    )
    if constant:
        encode = _counting_encode(model.state_size, hidden_size)
        graphs = BundleGraphs(encode, _fixed_rank(manifest), None)
    else:
        graphs = bundle_graphs(model, manifest.n_candidates, manifest.takes_bias)
        graphs = graphs if int8 else graphs._replace(rank_int8=None)
    names = item_ids or [f"item-{index}" for index in range(n_items)]
    return write_bundle(folder, manifest, names, *graphs.serialized())


def _counting_encode(state_size: int, query_size: int) -> onnx.ModelProto:
    graph = Graph()
    after = graph.add("Add", "state", np.array([1], np.float32), output="state_out")
    first, end, axis = np.array([0]), np.array([query_size]), np.array([1])
    graph.add("Slice", after, first, end, axis, output="query")
    state = TensorProto.FLOAT, "B", state_size
    query = value_info("query", TensorProto.FLOAT, "B", query_size)
    item = value_info("item_index", TensorProto.INT64, "B")
    return graph.model(
        [item, value_info("state", *state)], [query, value_info("state_out", *state)]
    )


def _fixed_rank(manifest: Manifest) -> onnx.ModelProto:
    graph, k = Graph(), manifest.n_candidates
    batch = graph.add("Shape", "query", end=1)
    shape = graph.add("Concat", batch, np.array([1]), axis=0)
    index = np.arange(k, dtype=np.int32)[None]
    graph.add("Expand", index, shape, output="top_index")
    graph.add("Expand", index[:, ::-1].astype(np.float32) + 1, shape, output="top_score")
    inputs = rank_inputs(manifest.query_size, manifest.n_items, manifest.takes_bias)
    return graph.model(inputs, rank_outputs(k))
