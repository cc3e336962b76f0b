"""Laws of the scorer: a session's result is its own, whoever else is in the batch."""

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from bench.serving.bundles import even_live, write_tiny_bundle
from export.graph import (
    BLOCK,
    ITEM_LEVELS,
    QUERY_LEVELS,
    n_rescored,
    rank_graph,
    rank_int8_graph,
)
from stream.errors import StreamError
from stream.model.bundle import Bundle, load_bundle
from stream.model.scorer import (
    FLOAT32,
    INT8,
    OnnxScorer,
    Ranking,
    Waves,
    _fastest,
    _run_rank,
    overlap,
    probe_bias,
)
from train.data.context import ContextField

BATCH_SIZES = [1, 2, 3, 7, 16, 64, 256]
N_ITEMS, HIDDEN_SIZE, K = 5_000, 100, 20
CONTEXT = (
    ContextField(name="device", kind="column", values=("phone", "tv")),
    ContextField(name="hour", kind="hour"),
    ContextField(name="gap", kind="gap", edges_s=(1.0, 60.0)),
)
N_FIELDS = len(CONTEXT)
MODELS: dict[str, dict[str, Any]] = {
    "gru": {"n_layers": 2},
    "lstm": {"cell": "lstm", "n_layers": 2, "residual": True, "context": CONTEXT},
    "matrices": {
        "context": CONTEXT,
        "input_context": "multiply",
        "transition_context": "matrices",
        "normalise": 12.0,
    },
    "window": {"cell": "window", "context": CONTEXT, "input_context": "multiply"},
    "candidates": {"live": even_live(35)},
    "bias": {"live": even_live(35, bias=1.5)},
}
Stepped = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module", params=MODELS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = write_tiny_bundle(
        tmp_path_factory.mktemp("bundles"),
        N_ITEMS,
        HIDDEN_SIZE,
        k=K,
        seed=3,
        **MODELS[request.param],
    )
    return load_bundle(folder)


def of_variant(bundle: Bundle, variant: str) -> Bundle:
    """The bundle with this graph alone to make its lists."""
    rank = bundle.rank_int8 if variant == INT8 else bundle.rank
    assert rank is not None
    return dataclasses.replace(bundle, rank=rank, rank_int8=None)


@pytest.fixture(scope="module", params=[FLOAT32, INT8])
def scorer(request: pytest.FixtureRequest, bundle: Bundle) -> OnnxScorer:
    return OnnxScorer(of_variant(bundle, request.param))


@pytest.fixture(scope="module")
def stepped(bundle: Bundle, scorer: OnnxScorer) -> Stepped:
    """256 sessions after some clicks, the next click of each, and query and state after that."""
    random = np.random.default_rng(4)
    sizes = [field.size for field in bundle.manifest.context]
    state = np.zeros((256, scorer.state_size), np.float32)
    for _ in range(4):
        before = state
        item_index = random.integers(N_ITEMS, size=256)
        context = random.integers(sizes, size=(256, len(sizes)), dtype=np.int32)
        query, state = scorer.encode(item_index, context, before)
    return item_index, context, before, query, state


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_sessions_stepped_together_are_bit_equal_to_sessions_stepped_apart(
    scorer: OnnxScorer, stepped: Stepped, batch_size: int
) -> None:
    item_index, context, before, query, state = stepped
    for first in range(0, 256, batch_size):
        rows = slice(first, first + batch_size)
        part_query, part_state = scorer.encode(item_index[rows], context[rows], before[rows])
        np.testing.assert_array_equal(part_query, query[rows])
        np.testing.assert_array_equal(part_state, state[rows])


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_sessions_ranked_together_are_bit_equal_to_sessions_ranked_apart(
    bundle: Bundle, scorer: OnnxScorer, stepped: Stepped, batch_size: int
) -> None:
    query, bias = stepped[3], probe_bias(bundle.manifest)
    top_index, top_score = scorer.rank(query, bias)
    for first in range(0, 256, batch_size):
        rows = slice(first, first + batch_size)
        part_index, part_score = scorer.rank(query[rows], bias)
        np.testing.assert_array_equal(part_index, top_index[rows])
        np.testing.assert_array_equal(part_score, top_score[rows])


@pytest.mark.parametrize("rows", [1, 3, 100, 256])
def test_a_batch_may_be_ranked_in_parts_of_any_size(
    bundle: Bundle, stepped: Stepped, rows: int
) -> None:
    scorer, query, bias = OnnxScorer(bundle), stepped[3], probe_bias(bundle.manifest)
    expected = scorer.rank(query, bias)
    scorer.ranking = scorer.ranking._replace(rows=rows)
    for found, whole in zip(scorer.rank(query, bias), expected, strict=True):
        np.testing.assert_array_equal(found, whole)


def test_a_session_does_not_depend_on_its_place_in_the_batch(
    scorer: OnnxScorer, stepped: Stepped
) -> None:
    item_index, context, before, query, state = stepped
    order = np.random.default_rng(6).permutation(256)
    found = scorer.encode(item_index[order], context[order], before[order])
    np.testing.assert_array_equal(found[0], query[order])
    np.testing.assert_array_equal(found[1], state[order])


def test_arguments_are_left_as_they_were(scorer: OnnxScorer, stepped: Stepped) -> None:
    arguments = stepped[:3]
    copies = [array.copy() for array in arguments]
    scorer.encode(*copies)
    for array, copy in zip(arguments, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_types_and_shapes_are_the_contracts(bundle: Bundle, scorer: OnnxScorer) -> None:
    for batch_size in (0, 1, 5):  # 0: a batch of bad clicks alone
        state = np.zeros((batch_size, scorer.state_size), np.float32)
        context = np.zeros((batch_size, len(bundle.manifest.context)), np.int32)
        query, state = scorer.encode(np.zeros(batch_size, np.int64), context, state)
        top_index, top_score = scorer.rank(query)
        assert state.shape == (batch_size, scorer.state_size)
        assert query.shape == (batch_size, HIDDEN_SIZE)
        assert top_index.shape == top_score.shape == (batch_size, scorer.n_candidates)
        assert [array.dtype.name for array in (state, query, top_index, top_score)] == [
            "float32",
            "float32",
            "int32",
            "float32",
        ]


def test_a_batch_is_scored_with_the_bias_that_is_given(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path, n_items=50, k=5, live=even_live(10, bias=2.0))
    scorer = OnnxScorer(load_bundle(folder))
    waves = Waves()
    row = waves.add_session(None)
    waves.step(row, 7, [], ranked=True)
    bias = np.zeros(50, np.float32)
    bias[[40, 41]] = 100, 200
    scores = waves.score(scorer, bias)
    assert scores.top_index.shape == (1, 10)
    assert scores.top_index[0, :2].tolist() == [41, 40]
    assert waves.score(scorer).top_score.max() < 50


def test_a_batch_that_wants_no_list_gets_none_as_wide_as_the_others(scorer: OnnxScorer) -> None:
    scores = Waves().score(scorer)
    assert scores.top_index.shape == scores.top_score.shape == (0, scorer.n_candidates)


def test_every_context_field_moves_the_query(
    bundle: Bundle, scorer: OnnxScorer, stepped: Stepped
) -> None:
    item_index, context, before, query, _ = stepped
    for column, field in enumerate(bundle.manifest.context):
        changed = context.copy()
        changed[:, column] = (changed[:, column] + 1) % field.size
        moved = np.abs(scorer.encode(item_index, changed, before)[0] - query).max(axis=1)
        assert (moved > 1e-4).all()


def test_the_list_is_the_best_of_all_scores_best_first(
    bundle: Bundle, scorer: OnnxScorer, stepped: Stepped
) -> None:
    query = stepped[3]
    weight = _weight(bundle)
    plain = query @ weight[:-1, :N_ITEMS] + weight[-1, :N_ITEMS]
    bias = probe_bias(bundle.manifest)
    for given in (None, bias):
        scores = plain if given is None else plain + given
        top_index, top_score = scorer.rank(query, given)
        best = np.sort(scores, axis=1)[:, : -bundle.manifest.n_candidates - 1 : -1]
        np.testing.assert_allclose(top_score, best, atol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(scores, top_index, 1), best, atol=1e-5)
        assert (np.diff(top_score) <= 0).all()


def _weight(bundle: Bundle) -> np.ndarray:
    graph = onnx.load_from_string(bundle.rank()).graph
    (weight,) = (tensor for tensor in graph.initializer if tensor.name == "weight")
    return numpy_helper.to_array(weight)


def rank_of(
    scores: np.ndarray,
    k: int,
    folder: Path,
    variant: str = FLOAT32,
    bias: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Lists for sessions whose scores are given, one row each: the query picks a row."""
    n_sessions, n_items = scores.shape
    live = None if bias is None else even_live(k, bias=1.0)
    folder = write_tiny_bundle(folder, n_items=n_items, hidden_size=n_sessions, k=k, live=live)
    graph = (rank_int8_graph if variant == INT8 else rank_graph)(
        scores.T.copy(), np.zeros(n_items, np.float32), k, live is not None
    )
    assert graph is not None
    bundle = dataclasses.replace(load_bundle(folder), rank=graph.SerializeToString, rank_int8=None)
    return OnnxScorer(bundle).rank(np.eye(n_sessions, dtype=np.float32), bias)


def test_equal_scores_stand_in_the_catalogues_order(tmp_path: Path) -> None:
    scores = np.array(
        [[1, 3, 2, 3, 1, 2], [0, 0, 0, 0, 0, 0], [-1, -2, -1, -2, -1, -2]], np.float32
    )
    top_index, top_score = rank_of(scores, 4, tmp_path)
    assert top_index.tolist() == [[1, 3, 2, 5], [0, 1, 2, 3], [0, 2, 4, 1]]
    assert top_score.tolist() == [[3, 3, 2, 2], [0, 0, 0, 0], [-1, -1, -1, -2]]


@pytest.mark.parametrize("variant", [FLOAT32, INT8])
@pytest.mark.parametrize(
    ("k", "n_values"),
    [(20, 1), (20, 2), (20, 10), (20, 1000), (50, 1), (50, 2), (50, 10)],
)
def test_equal_scores_stand_in_the_catalogues_order_across_blocks(
    tmp_path: Path, k: int, n_values: int, variant: str
) -> None:
    random = np.random.default_rng(n_values)
    n_items = n_rescored(k) * BLOCK + 7
    scores = random.integers(n_values, size=(30, n_items)).astype(np.float32)
    top_index, top_score = rank_of(scores, k, tmp_path, variant)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top_index, expected)
    np.testing.assert_array_equal(top_score, np.take_along_axis(scores, expected, 1))


@pytest.mark.parametrize("variant", [FLOAT32, INT8])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_bias_decides_with_the_score_what_is_best(
    tmp_path: Path, variant: str, sign: int
) -> None:
    """Whole numbers, so that sums are exact; the last items stand behind the last whole block."""
    random = np.random.default_rng(4)
    n_items = 40 * BLOCK + 7
    scores = random.integers(-30, 30, size=(30, n_items)).astype(np.float32)
    bias = sign * np.trunc(1000 / random.permutation(np.arange(1.0, n_items + 1)))
    bias[-3:] = 100, 25, 50
    bias = bias.astype(np.float32)
    top_index, top_score = rank_of(scores, 20, tmp_path, variant, bias)
    expected = np.argsort(-(scores + bias), axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(top_index, expected)
    np.testing.assert_array_equal(top_score, np.take_along_axis(scores + bias, expected, 1))


def test_a_list_may_be_the_whole_catalogue(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).standard_normal((4, 70)).astype(np.float32) - 1e6
    top_index, _ = rank_of(scores, 70, tmp_path)
    np.testing.assert_array_equal(top_index, np.argsort(-scores, axis=1, kind="stable"))


def test_int8_finds_the_items_behind_the_last_whole_block(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).standard_normal((4, 40 * BLOCK + 30)).astype(np.float32)
    scores[:, -25:] += 10
    top_index, _ = rank_of(scores, 20, tmp_path, INT8)
    np.testing.assert_array_equal(top_index, np.argsort(-scores, axis=1, kind="stable")[:, :20])


@pytest.mark.parametrize("bias", [0.0, 0.01, 30.0])
@pytest.mark.parametrize("live_bias", [0.0, 0.01, 2.0, 100.0])
def test_int8_lists_what_float32_lists_whatever_the_size_of_biases_and_queries(
    tmp_path: Path, bias: float, live_bias: float
) -> None:
    random = np.random.default_rng(1)
    rows = random.standard_normal((20_000, 50)).astype(np.float32)
    biases = (bias * random.standard_normal(20_000)).astype(np.float32)
    graph = rank_int8_graph(rows, biases, K, live_bias > 0)
    assert graph is not None
    bundle = dataclasses.replace(
        load_bundle(write_tiny_bundle(tmp_path, 20_000, 50, k=K, live=even_live(K, live_bias))),
        rank=rank_graph(rows, biases, K, live_bias > 0).SerializeToString,
        rank_int8=graph.SerializeToString,
    )
    given = probe_bias(bundle.manifest)
    float32, int8 = (OnnxScorer(of_variant(bundle, variant)) for variant in (FLOAT32, INT8))
    for size in (0.0, 0.01, 1.0, 100.0):
        query = size * random.standard_normal((64, 50)).astype(np.float32)
        listed, scores = float32.rank(query, given)
        found, found_scores = int8.rank(query, given)
        assert overlap(listed, found) >= 0.999
        same = listed == found
        np.testing.assert_allclose(found_scores[same], scores[same], rtol=1e-5, atol=1e-5)


def test_two_products_of_int8_fit_in_16_bits() -> None:
    """A processor without VNNI adds up so many; where more is needed it takes the largest."""
    random = np.random.default_rng(2)
    rows = random.standard_normal((3000, 8)).astype(np.float32)
    graph = rank_int8_graph(rows, rows[:, 0], 5)
    assert graph is not None
    (product,) = (node for node in graph.graph.node if node.op_type == "MatMulInteger")
    (weight,) = (w for w in graph.graph.initializer if w.name == product.input[1])
    levels = onnx.helper.make_tensor_value_info(product.input[0], onnx.TensorProto.UINT8, None)
    graph.graph.output.append(levels)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    query = (100 * random.standard_normal((200, 8)) ** 5).astype(np.float32)
    (sent,) = session.run([levels.name], {"query": query})
    assert isinstance(sent, np.ndarray)
    assert (sent.min(), sent.max()) == (1, 1 + 2 * QUERY_LEVELS)
    assert np.abs(numpy_helper.to_array(weight).astype(int)).max() == ITEM_LEVELS
    assert 2 * int(sent.max()) * ITEM_LEVELS < 2**15


def test_a_catalogue_in_which_int8_saves_nothing_has_no_such_graph(tmp_path: Path) -> None:
    n_items = n_rescored(K) * BLOCK
    assert load_bundle(write_tiny_bundle(tmp_path, n_items, k=K)).rank_int8 is not None
    assert load_bundle(write_tiny_bundle(tmp_path, n_items - 1, k=K)).rank_int8 is None


class SlowGraph(onnxruntime.InferenceSession):  # type: ignore[misc] # it comes without types
    """Always the same list, after a time that depends on the rows."""

    def __init__(self, seconds: Callable[[int], float], *first: int) -> None:
        self._seconds, self._list = seconds, np.array([first], np.int32)

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        rows = len(input_feed["query"])
        end = time.process_time() + self._seconds(rows)
        while time.process_time() < end:
            pass
        return [np.repeat(array, rows, axis=0) for array in (self._list, np.ones((1, 2), "f4"))]


PROBES = np.zeros((64, 3), np.float32)


def fastest(graphs: dict[str, SlowGraph]) -> Ranking:
    return _fastest(graphs, PROBES, {v: _run_rank(g, PROBES)[0] for v, g in graphs.items()})


@pytest.mark.parametrize(("int8_ms", "taken"), [(1, INT8), (3, FLOAT32)])
def test_the_faster_graph_is_taken(int8_ms: int, taken: str) -> None:
    graphs = {
        FLOAT32: SlowGraph(lambda rows: 0.002, 4, 5),
        INT8: SlowGraph(lambda rows: int8_ms / 1000, 5, 4),
    }
    ranking = fastest(graphs)
    assert (ranking.variant, ranking.int8_overlap) == (taken, 1)
    assert ranking.us_a_row[FLOAT32][1] > 2000 > 16 * ranking.us_a_row[FLOAT32][64]


def test_a_fast_graph_with_other_items_is_not_taken() -> None:
    graphs = {
        FLOAT32: SlowGraph(lambda rows: 0.002, 4, 5),
        INT8: SlowGraph(lambda rows: 0.0, 4, 6),
    }
    ranking = fastest(graphs)
    assert (ranking.variant, ranking.int8_overlap) == (FLOAT32, 0.5)


def test_batches_are_cut_where_a_row_costs_least() -> None:
    graphs = {FLOAT32: SlowGraph(lambda rows: 0.001 if rows <= 32 else 0.004, 4, 5)}
    assert fastest(graphs).rows == 32


def test_a_bundle_without_int8_is_ranked_in_float32(bundle: Bundle) -> None:
    ranking = OnnxScorer(of_variant(bundle, FLOAT32)).ranking
    assert (ranking.variant, ranking.int8_overlap) == (FLOAT32, None)
    assert ranking.us_a_row.keys() == {FLOAT32}


def test_int8_that_lists_other_items_is_measured_and_left_alone(tmp_path: Path) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path / "a", N_ITEMS, k=K, seed=1))
    other = load_bundle(write_tiny_bundle(tmp_path / "b", N_ITEMS, k=K, seed=2))
    ranking = OnnxScorer(dataclasses.replace(bundle, rank_int8=other.rank_int8)).ranking
    assert ranking.variant == FLOAT32
    assert ranking.int8_overlap is not None and ranking.int8_overlap < 0.5


def forget_bias(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.zeros(N_ITEMS, np.float32), "none"))
    for node in graph.node:
        node.input[:] = ["none" if name == "bias" else name for name in node.input]


def test_int8_that_does_not_look_at_the_bias_is_left_alone(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path, N_ITEMS, k=K, live=even_live(K, bias=2.0))
    bundle = changed(load_bundle(folder), "rank_int8", forget_bias)
    ranking = OnnxScorer(bundle).ranking
    assert ranking.variant == FLOAT32
    assert ranking.int8_overlap is not None and ranking.int8_overlap < 0.9


def test_the_bias_that_graphs_are_tried_with_is_a_streams(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path, 1000, live=even_live(5, bias=2.0), constant=True)
    bias = probe_bias(load_bundle(folder).manifest)
    assert bias is not None and bias.dtype == np.float32
    clicks = np.sort(np.exp(bias / 2) - 0.05)
    assert clicks[-100:].sum() > 2 * clicks[:-100].sum()


def test_int8_lists_what_float32_lists(bundle: Bundle, stepped: Stepped) -> None:
    float32, int8 = (OnnxScorer(of_variant(bundle, variant)) for variant in (FLOAT32, INT8))
    for bias in (None, probe_bias(bundle.manifest)):
        listed, found = (scorer.rank(stepped[3], bias)[0] for scorer in (float32, int8))
        assert overlap(listed, found) >= 0.999
    both = OnnxScorer(bundle).ranking
    assert both.int8_overlap is not None and both.int8_overlap >= 0.999
    assert both.us_a_row.keys() == {FLOAT32, INT8}


def test_overlap_counts_items_and_not_places() -> None:
    listed = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32)
    assert overlap(listed, listed[:, ::-1].copy()) == 1
    assert overlap(listed, np.array([[1, 2, 3, 9], [9, 8, 7, 1]], np.int32)) == 5 / 8


def test_the_counting_model_adds_one_for_each_click(tmp_path: Path) -> None:
    scorer = OnnxScorer(load_bundle(write_tiny_bundle(tmp_path, n_layers=2, constant=True)))
    state, no_context = np.zeros((3, 16), np.float32), np.empty((3, 0), np.int32)
    for n_clicks in (1, 2, 3):
        query, state = scorer.encode(np.array([4, 5, 6]), no_context, state)
        assert (state == n_clicks).all()
    top_index, top_score = scorer.rank(query)
    assert top_index.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert top_score.tolist() == [[5, 4, 3, 2, 1]] * 3


@pytest.mark.parametrize("bias", [0.0, 2.0])
def test_the_counting_model_lists_the_candidates(tmp_path: Path, bias: float) -> None:
    folder = write_tiny_bundle(tmp_path, constant=True, live=even_live(7, bias))
    bundle = load_bundle(folder)
    query = np.zeros((2, 8), np.float32)
    top_index, top_score = OnnxScorer(bundle).rank(query, probe_bias(bundle.manifest))
    assert top_index.tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 2
    assert top_score.tolist() == [[7, 6, 5, 4, 3, 2, 1]] * 2


def rename_output(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("Identity", [graph.output[0].name], ["other"]))
    graph.output[0].name = "other"


def fix_batch(graph: onnx.GraphProto) -> None:
    for argument in (*graph.input, *graph.output):
        for size in argument.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_value = 4


def changed(bundle: Bundle, name: str, change: Callable[[onnx.GraphProto], object]) -> Bundle:
    """The bundle with another graph of this name: encode or rank."""
    model = onnx.load_from_string(getattr(bundle, name)())
    change(model.graph)
    return dataclasses.replace(bundle, **{name: model.SerializeToString})


@pytest.mark.parametrize("name", ["encode", "rank"])
@pytest.mark.parametrize("change", [rename_output, fix_batch])
def test_a_graph_of_another_shape_is_refused(
    tmp_path: Path, name: str, change: Callable[[onnx.GraphProto], None]
) -> None:
    bundle = changed(load_bundle(write_tiny_bundle(tmp_path)), name, change)
    with pytest.raises(StreamError, match=rf"{name}.onnx has \{{.*\}}, but the manifest says \{{"):
        OnnxScorer(bundle)


@pytest.mark.parametrize(
    ("size", "value", "sentence"),
    [
        ("hidden_size", 9, r"encode.onnx has .*float\[B,8\].* says .*float\[B,9\]"),
        ("n_layers", 2, r"encode.onnx has .*float\[B,8\].* says .*float\[B,16\]"),
        ("k", 6, r"rank.onnx has .*int32\[B,5\].* says .*int32\[B,6\]"),
        ("live", even_live(6), r"rank.onnx has .*int32\[B,5\].* says .*int32\[B,6\]"),
        ("live", even_live(5, 1.0), r"rank.onnx has .*'query'.* says .*'bias': 'float\[50\]'\}"),
        (
            "n_items",
            51,
            r"encode.onnx failed on item_index 50 and context \[\], which the manifest allows",
        ),
        ("context", CONTEXT[:2], r"encode.onnx has \{'item_index'.* says .*int32\[B,2\]"),
    ],
)
def test_graphs_of_another_bundle_are_refused(
    tmp_path: Path, size: str, value: object, sentence: str
) -> None:
    graphs = load_bundle(write_tiny_bundle(tmp_path / "a", n_items=50, hidden_size=8, k=5))
    sizes: dict[str, Any] = {"n_items": 50, "hidden_size": 8, "k": 5} | {size: value}
    other = load_bundle(write_tiny_bundle(tmp_path / "b", **sizes))
    with pytest.raises(StreamError, match=sentence):
        OnnxScorer(
            Bundle(
                other.manifest,
                other.item_ids,
                other.item_index,
                graphs.encode,
                graphs.rank,
            )
        )


def test_a_field_with_more_values_than_the_graph_has_is_refused(tmp_path: Path) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path, context=CONTEXT))
    fields = [
        dataclasses.replace(f, values=("a", "b", "c")) if f.values else f
        for f in bundle.manifest.context
    ]
    with pytest.raises(
        StreamError, match=r"encode.onnx failed on item_index 49 and context \[4, 25"
    ):
        OnnxScorer(dataclasses.replace(bundle, manifest=replace(bundle.manifest, context=fields)))


def test_a_rank_graph_that_names_items_behind_the_catalogue_is_refused(tmp_path: Path) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path, n_items=50, hidden_size=8, k=5))
    embedding = np.zeros((51, 8), np.float32)
    bias = np.arange(51, dtype=np.float32)  # the best item is number 50
    bundle = dataclasses.replace(bundle, rank=rank_graph(embedding, bias, 5).SerializeToString)
    with pytest.raises(
        StreamError,
        match=r"rank.onnx returned item_index values from 46 to 50, but the manifest says n_items",
    ):
        OnnxScorer(bundle)


def move_weights_out(graph: onnx.GraphProto, location: str) -> None:
    """Put the largest weights into a file in the working directory."""
    weights = max(graph.initializer, key=lambda tensor: len(tensor.raw_data))
    Path("weights.bin").write_bytes(weights.raw_data)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)


@pytest.mark.parametrize("name", ["encode", "rank", "rank_int8"])
@pytest.mark.parametrize(
    "location", ["weights.bin", "./../{cwd}/weights.bin", "{path}/weights.bin"]
)
def test_weights_outside_the_graphs_file_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, location: str
) -> None:
    monkeypatch.chdir(tmp_path)
    location = location.format(cwd=tmp_path.name, path=tmp_path)
    bundle = load_bundle(write_tiny_bundle(tmp_path, n_items=2000))
    bundle = changed(bundle, name, partial(move_weights_out, location=location))
    with pytest.raises(StreamError, match=rf"{name}.onnx cannot be opened: .*xternal") as refused:
        OnnxScorer(bundle)
    assert "\n" not in str(refused.value)


def spoil(graph: onnx.GraphProto, index: tuple[int, ...], value: float) -> None:
    """Put a value into the largest weights."""
    weights = max(graph.initializer, key=lambda tensor: len(tensor.raw_data))
    array = numpy_helper.to_array(weights).copy()
    array[index] = value
    weights.CopyFrom(numpy_helper.from_array(array, weights.name))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_item_whose_weights_are_no_numbers_is_refused(tmp_path: Path, value: float) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path, n_items=2000, cell="window"))
    bundle = changed(bundle, "encode", partial(spoil, index=(1234, 3), value=value))
    with pytest.raises(
        StreamError, match=r"encode.onnx outputs NaN or infinity for item_index 1234$"
    ):
        OnnxScorer(bundle)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("int8", [False, True])
def test_scores_that_are_no_numbers_are_refused(tmp_path: Path, value: float, int8: bool) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path, n_items=2000, int8=int8))
    bundle = changed(bundle, "rank", partial(spoil, index=(3, 1234), value=value))
    with pytest.raises(StreamError, match=r"rank.onnx returned scores that are NaN or infinite$"):
        OnnxScorer(bundle)


def test_an_opened_graph_does_not_keep_its_file(tmp_path: Path) -> None:
    bundle = load_bundle(write_tiny_bundle(tmp_path))
    content = bundle.rank()
    bundle = dataclasses.replace(bundle, rank=lambda: content)
    before = sys.getrefcount(content)
    scorer = OnnxScorer(bundle)
    assert sys.getrefcount(content) == before
    del scorer


def test_a_file_that_is_no_graph_is_one_sentence(tmp_path: Path) -> None:
    bundle = dataclasses.replace(load_bundle(write_tiny_bundle(tmp_path)), rank=lambda: b"no graph")
    with pytest.raises(StreamError, match=r"rank.onnx cannot be opened: ") as refused:
        OnnxScorer(bundle)
    assert "\n" not in str(refused.value)
