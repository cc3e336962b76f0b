from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from train.data.context import ContextField
from train.network.model import ModelConfig, SessionModel

FIELDS = (
    ContextField(name="device", kind="column", values=("tv", "phone")),
    ContextField(name="hour", kind="hour"),
    ContextField(name="gap", kind="gap", edges_s=(1.0, 60.0)),
)
FAMILY: list[dict[str, Any]] = [
    {},
    {"cell": "rnn"},
    {"cell": "lstm", "n_layers": 2, "residual": True},
    {"cell": "window"},
    {"embedding": "one-hot", "n_layers": 2},
    {"embedding": "separate", "normalise": 8.0},
    {"context": FIELDS},
    {"context": FIELDS, "input_context": "multiply", "transition_context": "multiply"},
    {"context": FIELDS, "input_context": "multiply", "residual": True},
    {"context": FIELDS, "transition_context": "matrices", "cell": "lstm", "n_layers": 2},
    {
        "context": FIELDS,
        "embedding": "one-hot",
        "input_context": "multiply",
        "transition_context": "matrices",
    },
]


def a_model(**change: Any) -> SessionModel:
    torch.manual_seed(4)
    model = SessionModel(ModelConfig(n_items=17, **{"hidden_size": 6, **change}))
    for parameter in model.parameters():  # what begins as zeros would hide mistakes
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def n_weights(model: SessionModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def no_context(n: int) -> Tensor:
    return torch.zeros(n, 0, dtype=torch.int32)


def a_context(model: SessionModel, n: int) -> Tensor:
    sizes = torch.tensor([field.size for field in model.config.context])
    return (torch.rand(n, len(sizes)) * sizes).int()


@pytest.mark.parametrize("change", FAMILY, ids=range(len(FAMILY)))
def test_sessions_stepped_together_are_what_they_are_alone(change: dict[str, Any]) -> None:
    model = a_model(**change)
    clicks = torch.randint(17, (4, 5))
    contexts = [a_context(model, 5) for _ in clicks]
    with torch.inference_mode():
        together = model.initial_state(5)
        for items, context in zip(clicks, contexts, strict=True):
            queries, together = model.encode(items, context, together)
        assert together.shape == (5, model.state_size)
        for row in range(5):
            alone = model.initial_state(1)
            for items, context in zip(clicks, contexts, strict=True):
                query, alone = model.encode(items[row, None], context[row, None], alone)
            torch.testing.assert_close(together[row], alone[0], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(queries[row], query[0], atol=1e-6, rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(session=st.lists(st.integers(0, 16), min_size=5, max_size=5), split=st.integers(0, 5))
def test_a_session_continued_from_any_click_ends_in_the_same_state(
    session: list[int], split: int
) -> None:
    model = a_model(cell="lstm", n_layers=2)

    def run(clicks: list[int], state: Tensor) -> Tensor:
        for item_index in clicks:
            _, state = model.encode(torch.tensor([item_index]), no_context(1), state)
        return state

    with torch.inference_mode():
        whole = run(session, model.initial_state(1))
        kept = run(session[:split], model.initial_state(1)).clone()
        assert torch.equal(run(session[split:], kept), whole)


def test_encode_returns_a_new_state_and_leaves_the_old_one_alone() -> None:
    model = a_model(n_layers=2)
    state = model.initial_state(2)
    model.encode(torch.tensor([1, 2]), no_context(2), state)
    assert torch.equal(state, torch.zeros(2, 12))


@pytest.mark.parametrize("change", [c for c in FAMILY if "context" in c])
def test_every_context_field_changes_the_query(change: dict[str, Any]) -> None:
    model = a_model(**change)
    state = 0.5 * torch.randn(1, model.state_size)
    clicks, context = torch.tensor([3]), torch.ones(1, 3, dtype=torch.int32)
    before, _ = model.encode(clicks, context, state)
    for column in range(3):
        other = context.clone()
        other[0, column] = 2
        after, _ = model.encode(clicks, other, state)
        assert not torch.allclose(before, after), FIELDS[column].name


def test_a_model_without_context_of_its_kind_takes_no_weights_for_it() -> None:
    plain = a_model()
    for way in ("concat", "multiply", "matrices"):
        assert n_weights(a_model(transition_context=way)) == n_weights(plain)


def test_scores_of_named_candidates_are_columns_of_the_whole_catalogue() -> None:
    for model in (a_model(), a_model(normalise=9.0)):
        query = torch.randn(3, 6)
        candidates = torch.tensor([16, 0, 5, 5])
        torch.testing.assert_close(
            model.scores(query, candidates), model.scores(query)[:, candidates]
        )


def test_a_normalised_model_scores_by_the_cosine() -> None:
    model = a_model(normalise=9.0)
    model.output_bias.data.zero_()
    query, _ = model.encode(torch.tensor([1, 2]), no_context(2), model.initial_state(2))
    torch.testing.assert_close(query.norm(dim=1), torch.full((2,), 9.0))
    cosine = torch.cosine_similarity(query[:, None], model.item_embedding[None], dim=2)
    torch.testing.assert_close(model.scores(query), 9 * cosine)


def test_a_residual_connection_adds_a_layers_input_to_its_output() -> None:
    plain, residual = a_model(), a_model(residual=True)
    clicks, state = torch.tensor([2, 9]), plain.initial_state(2)
    added = residual.encode(clicks, no_context(2), state)[0]
    query = plain.encode(clicks, no_context(2), state)[0]
    torch.testing.assert_close(added - query, plain.item_embedding[clicks])


def test_a_shared_embedding_reads_clicks_through_the_output_rows() -> None:
    shared, separate = a_model(embedding="shared"), a_model(embedding="separate")
    assert shared.input_table is shared.item_embedding
    assert separate.input_table is not separate.item_embedding
    assert n_weights(separate) - n_weights(shared) == 17 * 6


def test_dropout_acts_in_training_only() -> None:
    model = a_model(dropout_embedding=0.5, dropout_hidden=0.5)
    arguments = torch.arange(8), no_context(8), model.initial_state(8)
    assert torch.equal(model.encode(*arguments)[0], model.encode(*arguments)[0])
    model.train()
    assert not torch.equal(model.encode(*arguments)[0], model.encode(*arguments)[0])


def test_dropout_leaves_out_its_share_and_the_way_back_the_same_entries() -> None:
    torch.manual_seed(1)
    model = a_model(dropout_hidden=0.3).train()
    x = torch.ones(200, 500, requires_grad=True)
    dropped = model._dropout(x, 0.3)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
    dropped.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert x.grad is not None
    assert torch.equal(x.grad, dropped)
    assert not torch.equal(model._dropout(x, 0.3), dropped)


def test_dropout_of_the_hidden_state_never_enters_the_recurrence() -> None:
    model = a_model()
    config = ModelConfig(n_items=17, hidden_size=6, dropout_embedding=0, dropout_hidden=0.9)
    dropped = SessionModel(config).train()
    dropped.load_state_dict(model.state_dict())
    arguments = torch.arange(8), no_context(8), torch.randn(8, 6)
    assert torch.equal(dropped.encode(*arguments)[1], model.encode(*arguments)[1])
