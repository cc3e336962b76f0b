"""The parity check passes graphs that agree with the model and stops those that do not."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from export.parity import ParityError, check_parity, random_sessions
from train.model import GRU4Rec, GRU4RecConfig

N_ITEMS, HIDDEN_SIZE, N_LAYERS, K = 40, 6, 2, 5


@pytest.fixture
def model() -> GRU4Rec:
    torch.manual_seed(1)
    config = GRU4RecConfig(n_items=N_ITEMS, hidden_size=HIDDEN_SIZE, n_layers=N_LAYERS)
    return GRU4Rec(config).eval()


@dataclass
class FakeScorer:
    """The model itself in the scorer's place, with an error where a test asks for one."""

    model: GRU4Rec
    hidden_error: float = 0.0
    swapped_places: tuple[int, int] = (0, 0)
    repeated_item: bool = False
    n_layers: int = N_LAYERS
    hidden_size: int = HIDDEN_SIZE
    n_recommendations: int = K

    def encode(self, item_index: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            after = self.model.encode(torch.from_numpy(item_index), torch.from_numpy(hidden))
        return np.asarray(after.numpy() + np.float32(self.hidden_error))

    def rank(self, hidden_last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            top_score, top_index = self.model.scores(torch.from_numpy(hidden_last)).topk(K)
        index, score = top_index.numpy().astype(np.int32), top_score.numpy()
        a, b = self.swapped_places
        index[:, [a, b]] = index[:, [b, a]]
        if self.repeated_item:
            index[:, 1] = index[:, 0]
        return index, score


def test_the_model_agrees_with_itself(model: GRU4Rec) -> None:
    sessions = [np.array(session) for session in ([1, 2, 3], [4], [5, 6], [7, 8, 9, 10])]
    parity = check_parity(model, FakeScorer(model), sessions)
    assert (parity.sessions, parity.clicks, parity.top_k_equal) == (4, 10, 10)
    assert parity.max_abs_hidden < 1e-7


def test_sessions_of_every_length_go_through_whole(model: GRU4Rec) -> None:
    sessions = random_sessions(300, N_ITEMS, seed=2)
    parity = check_parity(model, FakeScorer(model), sessions)
    assert parity.sessions == 300
    assert parity.clicks == parity.top_k_equal == sum(map(len, sessions))


def test_an_error_in_hidden_adds_up_over_a_session_until_it_is_found(model: GRU4Rec) -> None:
    scorer = FakeScorer(model, hidden_error=8e-6)
    assert check_parity(model, scorer, [np.array([1])]).max_abs_hidden == pytest.approx(8e-6, 0.1)
    with pytest.raises(ParityError, match=r"after click \d+ of a session, .* allowed 1e-05"):
        check_parity(model, scorer, [np.arange(30)])


def test_a_hidden_that_is_no_number_is_found(model: GRU4Rec) -> None:
    with pytest.raises(ParityError, match="differ by nan in hidden"):
        check_parity(model, FakeScorer(model, hidden_error=np.nan), [np.array([1])])


def test_items_in_the_wrong_order_are_found(model: GRU4Rec) -> None:
    with pytest.raises(ParityError, match=r"rank.onnx lists an item whose score"):
        check_parity(model, FakeScorer(model, swapped_places=(3, 4)), [np.array([1])])


def test_tied_items_may_change_places_and_are_counted(model: GRU4Rec) -> None:
    with torch.no_grad():
        model.item_embedding[20:] = 0  # twenty items tied at their bias
        model.output_bias[20:] = 100
    sessions = [np.array([1, 2, 3]), np.array([4, 5])]
    parity = check_parity(model, FakeScorer(model, swapped_places=(0, 1)), sessions)
    assert (parity.clicks, parity.top_k_equal) == (5, 0)


@pytest.mark.parametrize(
    ("score", "gap", "passes"),
    [(1.0, 8e-6, True), (1.0, 1.2e-5, False), (32.0, 4e-5, True), (32.0, 9e-5, False)],
)
def test_a_tie_is_as_wide_as_float32_makes_it(
    model: GRU4Rec, score: float, gap: float, passes: bool
) -> None:
    with torch.no_grad():
        model.item_embedding.zero_()
        model.output_bias.copy_(-torch.arange(N_ITEMS))
        model.output_bias[:2] = torch.tensor([score + gap, score])
    scorer = FakeScorer(model, swapped_places=(0, 1))
    if passes:
        assert check_parity(model, scorer, [np.array([1])]).top_k_equal == 0
    else:
        with pytest.raises(ParityError, match=r"from that place's score, allowed 1e-05"):
            check_parity(model, scorer, [np.array([1])])


def test_a_tied_item_may_not_stand_twice(model: GRU4Rec) -> None:
    with torch.no_grad():
        model.item_embedding[20:] = 0
        model.output_bias[20:] = 100
    with pytest.raises(ParityError, match=r"rank.onnx lists an item twice"):
        check_parity(model, FakeScorer(model, repeated_item=True), [np.array([1])])


def test_random_sessions_cover_the_catalogue_and_long_sessions() -> None:
    sessions = random_sessions(1000, 100, seed=0)
    lengths = np.array([len(session) for session in sessions])
    assert set(np.concatenate(sessions).tolist()) == set(range(100))
    assert lengths.min() == 1 and 30 < lengths.max() <= 50
    again = random_sessions(1000, 100, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(sessions, again, strict=True))
