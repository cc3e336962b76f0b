"""The comparison of float32 and int8: what it measures, on a small catalogue."""

import dataclasses
from pathlib import Path

import numpy as np

from bench.serving.bundles import write_tiny_bundle
from bench.serving.variants import ROWS, queries, us_a_list
from export.parity import ParitySession
from stream.model.bundle import load_bundle
from stream.model.scorer import FLOAT32, INT8, OnnxScorer


def test_a_query_follows_every_click_of_a_session(tmp_path: Path) -> None:
    scorer = OnnxScorer(load_bundle(write_tiny_bundle(tmp_path)))
    clicked = [[1, 2], [3], [4, 5, 6]]
    sessions = [ParitySession(np.array(c), np.empty((len(c), 0), np.int32)) for c in clicked]
    expected = []
    for session in sessions:
        state = np.zeros((1, scorer.state_size), np.float32)
        for click in range(len(session.item_index)):
            item_index, context = session.item_index[[click]], session.context[[click]]
            query, state = scorer.encode(item_index, context, state)
            expected.append(query[0])
    found = queries(scorer, sessions)
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(np.array(expected), axis=0))


def test_every_variant_is_timed_whole_and_as_it_serves(tmp_path: Path) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path, n_items=2000))
    assert bundle.rank_int8 is not None
    int8 = dataclasses.replace(bundle, rank=bundle.rank_int8, rank_int8=None)
    scorers = {FLOAT32: OnnxScorer(bundle), INT8: OnnxScorer(int8)}
    query = np.ones((max(ROWS), 8), np.float32)
    found = us_a_list(scorers, query, rounds=2)
    assert found.keys() == {FLOAT32, INT8}
    for ways in found.values():
        assert ways.keys() == {"in_one_call", "as_served"}
        assert all(tuple(us) == ROWS and min(us.values()) > 0 for us in ways.values())
