"""The parity check passes graphs that agree with the model and stops those that do not."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.serving.bundles import even_live, random_model, write_tiny_bundle
from export.parity import ParitySession, _error, check_parity, random_sessions
from stream.model.bundle import load_bundle
from stream.model.scorer import OnnxScorer, probe_bias
from train.command import TrainError
from train.data.context import ContextField
from train.network.model import ModelConfig, SessionModel

N_ITEMS, HIDDEN_SIZE, N_LAYERS, K = 40, 6, 2, 5
CONTEXT = (
    ContextField(name="device", kind="column", values=("phone", "tv")),
    ContextField(name="gap", kind="gap", edges_s=(1.0, 60.0)),
)
SIZES = [field.size for field in CONTEXT]


@pytest.fixture
def model() -> SessionModel:
    return random_model(
        ModelConfig(n_items=N_ITEMS, hidden_size=HIDDEN_SIZE, n_layers=N_LAYERS, context=CONTEXT)
    )


def session_of(*items: int) -> ParitySession:
    """These clicks, each on a phone and without a gap."""
    return ParitySession(np.array(items), np.tile(np.array([2, 0], np.int32), (len(items), 1)))


@dataclass
class FakeScorer:
    """The model itself in the scorer's place, with an error where a test asks for one."""

    model: SessionModel
    state_error: float = 0.0
    query_error: float = 0.0
    ignores_context: bool = False
    swapped_places: tuple[int, int] = (0, 0)
    repeated_item: bool = False
    ignores_bias: bool = False
    n_candidates: int = K

    @property
    def state_size(self) -> int:
        return self.model.state_size

    @property
    def query_size(self) -> int:
        return self.model.config.hidden_size

    def encode(
        self, item_index: np.ndarray, context: np.ndarray, state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.ignores_context:
            context = np.zeros_like(context)
        with torch.inference_mode():
            query, after = self.model.encode(*map(torch.from_numpy, (item_index, context, state)))
        return (
            np.asarray(query.numpy() + np.float32(self.query_error)),
            np.asarray(after.numpy() + np.float32(self.state_error)),
        )

    def rank(
        self, query: np.ndarray, bias: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        added = 0.0 if bias is None or self.ignores_bias else torch.from_numpy(bias)
        with torch.inference_mode():
            top_score, top_index = (self.model.scores(torch.from_numpy(query)) + added).topk(K)
        index, score = top_index.numpy().astype(np.int32), top_score.numpy()
        a, b = self.swapped_places
        index[:, [a, b]] = index[:, [b, a]]
        if self.repeated_item:
            index[:, 1] = index[:, 0]
        return index, score


def test_the_model_agrees_with_itself(model: SessionModel) -> None:
    sessions = [session_of(1, 2, 3), session_of(4), session_of(5, 6), session_of(7, 8, 9, 10)]
    parity = check_parity(model, FakeScorer(model), sessions)
    assert (parity.sessions, parity.clicks, parity.top_k_equal) == (4, 10, 10)
    assert 0 < parity.max_error == parity.max_error_pytorch < 1e-6


def test_the_overlap_with_int8_is_measured_over_all_clicks(model: SessionModel) -> None:
    sessions = [session_of(1, 2, 3), session_of(4)]
    scorer = FakeScorer(model)
    assert check_parity(model, scorer, sessions).int8_overlap == 0
    swapped = FakeScorer(model, swapped_places=(0, 1))
    assert check_parity(model, scorer, sessions, swapped).int8_overlap == 1
    one_missing = FakeScorer(model, repeated_item=True)
    assert check_parity(model, scorer, sessions, one_missing).int8_overlap == (K - 1) / K


BIAS = np.random.default_rng(3).standard_normal(N_ITEMS).astype(np.float32)


def test_a_bias_is_added_to_the_models_scores(model: SessionModel) -> None:
    sessions = random_sessions(20, N_ITEMS, SIZES, seed=2)
    parity = check_parity(model, FakeScorer(model), sessions, FakeScorer(model), BIAS)
    assert parity.top_k_equal == parity.clicks
    assert parity.int8_overlap == 1
    without = FakeScorer(model, ignores_bias=True)
    assert check_parity(model, FakeScorer(model), sessions, without, BIAS).int8_overlap < 0.7
    with pytest.raises(TrainError, match=r"rank.onnx ranks an item in a place"):
        check_parity(model, without, sessions, None, BIAS)


def test_graphs_with_a_bias_agree_with_the_model(tmp_path: Path) -> None:
    config: dict[str, Any] = {"n_items": 4000, "hidden_size": 16, "normalise": 12.0}
    folder = write_tiny_bundle(tmp_path, **config, k=5, seed=4, live=even_live(30, bias=2.0))
    bundle = load_bundle(folder)
    assert bundle.rank_int8 is not None
    float32, int8 = (
        OnnxScorer(dataclasses.replace(bundle, rank=rank, rank_int8=None))
        for rank in (bundle.rank, bundle.rank_int8)
    )
    model = random_model(ModelConfig(**config), seed=4)
    sessions = random_sessions(50, 4000, [], seed=2)
    for bias in (probe_bias(bundle.manifest), None):
        parity = check_parity(model, float32, sessions, int8, bias)
        assert parity.top_k_equal > 0.99 * parity.clicks
        assert parity.int8_overlap > 0.999


def test_sessions_of_every_length_go_through_whole(model: SessionModel) -> None:
    sessions = random_sessions(300, N_ITEMS, SIZES, seed=2)
    parity = check_parity(model, FakeScorer(model), sessions)
    assert parity.sessions == 300
    assert parity.clicks == parity.top_k_equal == sum(len(s.item_index) for s in sessions)


def test_an_error_in_the_state_adds_up_over_a_session_until_it_is_found(
    model: SessionModel,
) -> None:
    scorer = FakeScorer(model, state_error=8e-6)
    assert check_parity(model, scorer, [session_of(1)]).max_error == pytest.approx(8e-6, 0.1)
    with pytest.raises(
        TrainError, match=r"after click \d+ of a session, .* \(at most 1e-05 is allowed"
    ):
        check_parity(model, scorer, [session_of(*range(30))])


def test_an_error_in_the_query_alone_is_found(model: SessionModel) -> None:
    with pytest.raises(
        TrainError, match=r"differ by 2e-05 in the query \(at most 1e-05 is allowed"
    ):
        check_parity(model, FakeScorer(model, query_error=2e-5), [session_of(1)])


def test_a_graph_that_does_not_look_at_the_context_is_found(model: SessionModel) -> None:
    sessions = random_sessions(20, N_ITEMS, SIZES, seed=2)
    with pytest.raises(TrainError, match=r"in the state \(at most"):
        check_parity(model, FakeScorer(model, ignores_context=True), sessions)


def test_the_error_of_a_number_above_1_is_a_share_of_it() -> None:
    """An LSTM's cell has no bound, and float32 is as coarse as its number is large."""
    exact = torch.tensor([[0.5, -30.0]], dtype=torch.float64)
    assert _error(np.array([[0.5625, -30.0]], np.float32), exact) == 0.0625
    assert _error(np.array([[0.5, -28.5]], np.float32), exact) == 0.05


def test_graphs_may_be_as_far_off_as_float32_makes_pytorch_itself() -> None:
    """A cell that makes differences larger ends anywhere, on either side."""
    model = random_model(ModelConfig(n_items=N_ITEMS, cell="rnn", hidden_size=32, n_layers=3))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "weight" in name:
                weight.mul_(4)
    sessions = random_sessions(100, N_ITEMS, [], seed=2)
    parity = check_parity(model, FakeScorer(model, state_error=1e-7), sessions)
    assert parity.max_error > 1e-3
    with pytest.raises(TrainError, match=r"after click [1-3] of a session, .* in the query"):
        check_parity(model, FakeScorer(model, query_error=1e-3), sessions)


def test_a_state_that_is_no_number_is_found(model: SessionModel) -> None:
    with pytest.raises(TrainError, match="differ by nan in the state"):
        check_parity(model, FakeScorer(model, state_error=np.nan), [session_of(1)])


def test_items_in_the_wrong_order_are_found(model: SessionModel) -> None:
    with pytest.raises(TrainError, match=r"rank.onnx ranks an item in a place"):
        check_parity(model, FakeScorer(model, swapped_places=(3, 4)), [session_of(1)])


def test_tied_items_may_change_places_and_are_counted(model: SessionModel) -> None:
    with torch.no_grad():
        model.item_embedding[20:] = 0  # twenty items tied at their bias
        model.output_bias[20:] = 100
    sessions = [session_of(1, 2, 3), session_of(4, 5)]
    parity = check_parity(model, FakeScorer(model, swapped_places=(0, 1)), sessions)
    assert (parity.clicks, parity.top_k_equal) == (5, 0)


@pytest.mark.parametrize(
    ("score", "gap", "passes"),
    [(1.0, 8e-6, True), (1.0, 1.2e-5, False), (32.0, 4e-5, True), (32.0, 9e-5, False)],
)
def test_a_tie_is_as_wide_as_float32_makes_it(
    model: SessionModel, score: float, gap: float, passes: bool
) -> None:
    with torch.no_grad():
        model.item_embedding.zero_()
        model.output_bias.copy_(-torch.arange(N_ITEMS))
        model.output_bias[:2] = torch.tensor([score + gap, score])
    scorer = FakeScorer(model, swapped_places=(0, 1))
    if passes:
        assert check_parity(model, scorer, [session_of(1)]).top_k_equal == 0
    else:
        with pytest.raises(TrainError, match=r"at most 1e-05 is allowed"):
            check_parity(model, scorer, [session_of(1)])


def test_a_tied_item_may_not_stand_twice(model: SessionModel) -> None:
    with torch.no_grad():
        model.item_embedding[20:] = 0
        model.output_bias[20:] = 100
    with pytest.raises(TrainError, match=r"rank.onnx lists an item twice"):
        check_parity(model, FakeScorer(model, repeated_item=True), [session_of(1)])


def test_random_sessions_cover_catalogue_context_and_long_sessions() -> None:
    sessions = random_sessions(1000, 100, [3, 26], seed=0)
    lengths = np.array([len(session.item_index) for session in sessions])
    assert set(np.concatenate([s.item_index for s in sessions]).tolist()) == set(range(100))
    context = np.concatenate([session.context for session in sessions])
    assert [set(column.tolist()) for column in context.T] == [set(range(3)), set(range(26))]
    assert lengths.min() == 1 and 30 < lengths.max() <= 50
    again = random_sessions(1000, 100, [3, 26], seed=0)
    for ours, theirs in zip(sessions, again, strict=True):
        np.testing.assert_array_equal(ours.item_index, theirs.item_index)
        np.testing.assert_array_equal(ours.context, theirs.context)
    assert random_sessions(2, 100, [], seed=0)[1].context.shape[1] == 0
