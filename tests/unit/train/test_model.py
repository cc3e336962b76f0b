from typing import Literal

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from train.model import GRU4Rec, GRU4RecConfig, GRULayer


def a_model(
    n_layers: int = 2, embedding: Literal["shared", "separate"] = "shared", dropout: float = 0.0
) -> GRU4Rec:
    torch.manual_seed(4)
    config = GRU4RecConfig(
        n_items=17,
        hidden_size=6,
        n_layers=n_layers,
        embedding=embedding,
        dropout_embedding=dropout,
        dropout_hidden=dropout,
    )
    model = GRU4Rec(config)
    torch.nn.init.normal_(model.output_bias)
    return model.eval()


def test_a_layer_computes_what_torch_calls_a_gru_cell() -> None:
    torch.manual_seed(1)
    layer, cell = GRULayer(5, 7), torch.nn.GRUCell(5, 7)
    cell.load_state_dict(
        {
            "weight_ih": layer.weight_input,
            "weight_hh": layer.weight_hidden,
            "bias_ih": torch.randn(21),
            "bias_hh": torch.randn(21),
        }
    )
    layer.bias_input.data = cell.bias_ih.data
    layer.bias_hidden.data = cell.bias_hh.data
    x, hidden = torch.randn(3, 5), torch.randn(3, 7)
    torch.testing.assert_close(layer(x, hidden), cell(x, hidden))


@settings(deadline=None, max_examples=25)
@given(
    clicks=st.lists(st.lists(st.integers(0, 16), min_size=4, max_size=4), min_size=2, max_size=6)
)
def test_sessions_stepped_together_are_what_they_are_alone(clicks: list[list[int]]) -> None:
    model = a_model()
    with torch.inference_mode():
        together = model.initial_hidden(len(clicks))
        for column in zip(*clicks, strict=True):
            together = model.encode(torch.tensor(column), together)
        for row, session in enumerate(clicks):
            alone = model.initial_hidden(1)
            for item_index in session:
                alone = model.encode(torch.tensor([item_index]), alone)
            torch.testing.assert_close(together[:, row], alone[:, 0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("split", range(6))
def test_a_session_continued_from_any_click_ends_in_the_same_state(split: int) -> None:
    model = a_model()
    session = [3, 1, 4, 1, 5]

    def run(clicks: list[int], hidden: torch.Tensor) -> torch.Tensor:
        for item_index in clicks:
            hidden = model.encode(torch.tensor([item_index]), hidden)
        return hidden

    with torch.inference_mode():
        whole = run(session, model.initial_hidden(1))
        kept = run(session[:split], model.initial_hidden(1)).clone()
        assert torch.equal(run(session[split:], kept), whole)


def test_encode_returns_a_new_state_and_leaves_the_old_one_alone() -> None:
    model = a_model()
    hidden = model.initial_hidden(2)
    model.encode(torch.tensor([1, 2]), hidden)
    assert torch.equal(hidden, torch.zeros(2, 2, 6))


def test_scores_of_named_candidates_are_columns_of_the_whole_catalogue() -> None:
    model = a_model()
    hidden_last = torch.randn(3, 6)
    candidates = torch.tensor([16, 0, 5, 5])
    torch.testing.assert_close(
        model.scores(hidden_last, candidates), model.scores(hidden_last)[:, candidates]
    )


def test_a_shared_embedding_reads_clicks_through_the_output_rows() -> None:
    shared, separate = a_model(embedding="shared"), a_model(embedding="separate")
    assert shared.input_table is shared.item_embedding
    assert separate.input_table is not separate.item_embedding
    assert separate.n_parameters() - shared.n_parameters() == 17 * 6
    clicks, hidden = torch.tensor([2]), shared.initial_hidden(1)
    before = shared.encode(clicks, hidden), separate.encode(clicks, hidden)
    for model in (shared, separate):
        model.item_embedding.data += 1.0
    after = shared.encode(clicks, hidden), separate.encode(clicks, hidden)
    assert not torch.allclose(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_dropout_acts_in_training_only() -> None:
    model = a_model(dropout=0.5)
    clicks, hidden = torch.arange(8), model.initial_hidden(8)
    assert torch.equal(model.encode(clicks, hidden), model.encode(clicks, hidden))
    model.train()
    assert not torch.equal(model.encode(clicks, hidden), model.encode(clicks, hidden))


def test_dropout_of_the_hidden_state_never_enters_the_recurrence() -> None:
    model = a_model(n_layers=1)
    dropped = GRU4Rec(GRU4RecConfig(n_items=17, hidden_size=6, dropout_hidden=0.9)).train()
    dropped.load_state_dict(model.state_dict())
    clicks, hidden = torch.arange(8), torch.randn(1, 8, 6)
    assert torch.equal(dropped.encode(clicks, hidden), model.encode(clicks, hidden))
