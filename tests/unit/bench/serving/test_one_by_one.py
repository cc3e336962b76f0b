"""The opponents do the same job: its one graph answers what our two do."""

from pathlib import Path

import numpy as np

from bench.serving.bundles import write_tiny_bundle
from bench.serving.one_by_one import Model, advance
from stream.contract.click import Click
from stream.model.bundle import load_bundle
from stream.model.scorer import OnnxScorer
from stream.session import decode_state, encode_state


def test_one_graph_answers_as_encode_and_rank_do(tmp_path: Path) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path, n_items=500, n_layers=2, k=5))
    model, scorer = Model(bundle), OnnxScorer(bundle)
    state_of_model = np.zeros((1, 16), np.float32)
    no_context = np.empty((1, 0), np.int32)
    stored = None
    for n, index in enumerate([3, 499, 3, 77]):
        click = Click(b"s", f"item-{index}", 1_000 * n, n + 1)
        stored = encode_state(advance(bundle, model, click, stored))
        query, state_of_model = scorer.encode(np.array([index]), no_context, state_of_model)
        top_index, top_score = scorer.rank(query)
        state = decode_state(stored)
        np.testing.assert_array_equal(state.model_state, state_of_model[0])
        np.testing.assert_array_equal(state.top_index, top_index[0])
        np.testing.assert_array_equal(state.top_score, top_score[0])
        assert state.n_clicks == len(state.trail) == n + 1


def test_a_session_past_its_idle_timeout_begins_anew(tmp_path: Path) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path, idle_timeout_s=60))
    model = Model(bundle)
    first = advance(bundle, model, Click(b"s", "item-1", 0, 1), None)
    later = Click(b"s", "item-2", 60_001, 2)
    fresh = advance(bundle, model, later, None)
    assert encode_state(advance(bundle, model, later, encode_state(first))) == encode_state(fresh)
