"""The encode graph computes what the model computes; the rank graph's laws are the scorer's."""

from itertools import product
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from bench.serving.bundles import random_model
from export.encode import bundle_graphs, encode_graph
from train.data.context import GAP_BIN_EDGES_S, ContextField
from train.network.model import ModelConfig, SessionModel

N_ITEMS, HIDDEN_SIZE = 60, 8
DEVICE = ContextField(name="device", kind="column", values=("phone", "tv"))
HOUR = ContextField(name="hour", kind="hour")
GAP = ContextField(name="gap", kind="gap", edges_s=GAP_BIN_EDGES_S)
CELLS = ("rnn", "gru", "lstm")
ARCHITECTURES: list[dict[str, Any]] = [
    *(
        {"cell": cell, "embedding": embedding, "n_layers": n_layers, "residual": n_layers > 1}
        for cell, embedding, n_layers in product(CELLS, ("shared", "separate", "one-hot"), (1, 3))
    ),
    {"cell": "window"},
    {"cell": "window", "embedding": "separate", "residual": True},
    {"cell": "gru", "residual": True},
    {"cell": "lstm", "normalise": 12.0},
]
WAYS_IN = ("concat", "multiply")
CONTEXTS: list[dict[str, Any]] = [
    *(
        {"cell": cell, "input_context": into, "transition_context": over, "n_layers": 2}
        for cell, into, over in product(CELLS, WAYS_IN, (*WAYS_IN, "matrices"))
    ),
    *(
        {"cell": "window", "input_context": into, "transition_context": over}
        for into, over in product(("concat", "multiply"), repeat=2)
    ),
    {"embedding": "one-hot", "input_context": "multiply", "transition_context": "multiply"},
    {"embedding": "one-hot", "input_context": "multiply", "transition_context": "matrices"},
    {"cell": "lstm", "input_context": "concat", "residual": True, "embedding": "separate"},
]


def assert_steps_alike(model: SessionModel) -> None:
    """Whole sessions from nothing, each side with its own state; every batch size."""
    graph = encode_graph(model)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    sizes = [field.size for field in model.config.context]
    for batch_size in (1, 2, 40):
        state = np.zeros((batch_size, model.state_size), np.float32)
        expected_state = torch.from_numpy(state)
        for _ in range(6):
            item_index = random.integers(N_ITEMS, size=batch_size)
            context = random.integers(sizes, size=(batch_size, len(sizes)), dtype=np.int32)
            inputs = {"item_index": item_index, "state": state}
            inputs |= {"context": context} if sizes else {}
            query, state = session.run(["query", "state_out"], inputs)
            with torch.inference_mode():
                expected_query, expected_state = model.encode(
                    torch.from_numpy(item_index), torch.from_numpy(context), expected_state
                )
            # float32 sums in another order; a residual or a cell may be larger than 1.
            np.testing.assert_allclose(query, expected_query.numpy(), rtol=3e-6, atol=3e-6)
            np.testing.assert_allclose(state, expected_state.numpy(), rtol=3e-6, atol=3e-6)


def named(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values())


@pytest.mark.parametrize("options", ARCHITECTURES, ids=named)
def test_the_graph_steps_sessions_as_the_model_does(options: dict[str, Any]) -> None:
    config = ModelConfig(n_items=N_ITEMS, hidden_size=HIDDEN_SIZE, **options)
    assert_steps_alike(random_model(config))


@pytest.mark.parametrize("options", CONTEXTS, ids=named)
def test_the_graph_takes_context_in_as_the_model_does(options: dict[str, Any]) -> None:
    config = ModelConfig(
        n_items=N_ITEMS,
        hidden_size=HIDDEN_SIZE,
        context=(DEVICE, GAP, HOUR),
        **options,
    )
    assert_steps_alike(random_model(config))


@pytest.mark.parametrize("normalise", [0.0, 12.0])
def test_the_rank_graph_scores_as_the_model_does(normalise: float) -> None:
    config = ModelConfig(n_items=N_ITEMS, hidden_size=HIDDEN_SIZE, normalise=normalise)
    model = random_model(config)
    rank = bundle_graphs(model, N_ITEMS).rank
    session = onnxruntime.InferenceSession(
        rank.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    query = np.random.default_rng(1).standard_normal((7, HIDDEN_SIZE)).astype(np.float32)
    top_index, top_score = session.run(["top_index", "top_score"], {"query": query})
    with torch.inference_mode():
        scores = model.scores(torch.from_numpy(query)).numpy()
    np.testing.assert_allclose(np.take_along_axis(scores, top_index, 1), top_score, atol=1e-5)
    assert (np.sort(top_index, axis=1) == np.arange(N_ITEMS)).all()
