from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from train.network.cells import GATES, Cell, LowRank, RecurrentLayer, WindowLayer

NO_CONTEXT = torch.zeros(3, 0, dtype=torch.int32)


def a_layer(cell: Cell, transition_sizes: Sequence[int] = ()) -> RecurrentLayer:
    torch.manual_seed(1)
    layer = RecurrentLayer(cell, 5, 7, transition_sizes, rank=2)
    for bias in (layer.bias_input, layer.bias_hidden):
        torch.nn.init.normal_(bias)
    return layer


def as_torch(layer: RecurrentLayer, cell: torch.nn.RNNCellBase) -> torch.nn.RNNCellBase:
    cell.load_state_dict(
        {
            "weight_ih": layer.weight_input,
            "weight_hh": layer.weight_hidden,
            "bias_ih": layer.bias_input,
            "bias_hh": layer.bias_hidden,
        }
    )
    return cell


def test_rnn_and_gru_compute_what_torch_calls_by_these_names() -> None:
    x, hidden = torch.randn(3, 5), torch.randn(3, 7)
    for name, cell in (("rnn", torch.nn.RNNCell(5, 7)), ("gru", torch.nn.GRUCell(5, 7))):
        layer = a_layer(name)  # type: ignore[arg-type]  # both are names of cells
        output, state = layer(x, hidden, NO_CONTEXT)
        torch.testing.assert_close(output, as_torch(layer, cell)(x, hidden))
        assert state is output


def test_the_compiled_gru_has_the_gradients_of_torchs() -> None:
    layer, x, hidden = a_layer("gru"), torch.randn(3, 5), torch.randn(3, 7)
    reference = as_torch(layer, torch.nn.GRUCell(5, 7))
    found: list[Tensor | None] = []
    expected: list[Tensor | None] = []
    for gradients, cell in ((found, layer), (expected, reference)):
        inputs = x.clone().requires_grad_(), hidden.clone().requires_grad_()
        output = layer(*inputs, NO_CONTEXT)[0] if cell is layer else cell(*inputs)
        (output**3).sum().backward()
        gradients += [tensor.grad for tensor in inputs]
    found += [layer.weight_input.grad, layer.weight_hidden.grad, layer.bias_hidden.grad]
    expected += [reference.weight_ih.grad, reference.weight_hh.grad, reference.bias_hh.grad]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x, hidden, NO_CONTEXT)[0], reference(x, hidden))


def test_lstm_computes_what_torch_calls_an_lstm_cell_and_keeps_hidden_and_cell() -> None:
    layer = a_layer("lstm")
    x, hidden, memory = torch.randn(3, 5), torch.randn(3, 7), torch.randn(3, 7)
    output, state = layer(x, torch.cat([hidden, memory], dim=1), NO_CONTEXT)
    expected = as_torch(layer, torch.nn.LSTMCell(5, 7))(x, (hidden, memory))
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(state, torch.cat(expected, dim=1))


def test_a_window_is_one_matrix_over_the_last_inputs_the_newest_first() -> None:
    torch.manual_seed(1)
    layer = WindowLayer(2, 4)
    inputs = torch.randn(5, 1, 2)
    state = torch.zeros(1, layer.state_size)
    for x in inputs:
        output, state = layer(x, state, NO_CONTEXT)
    newest_first = torch.cat([inputs[4], inputs[3], inputs[2]], dim=1)
    torch.testing.assert_close(output, torch.tanh(F.linear(newest_first, layer.weight, layer.bias)))


def test_a_low_rank_matrix_is_a_matrix_of_its_own_for_every_context() -> None:
    torch.manual_seed(2)
    low_rank = LowRank(5, 6, sizes=[3, 4], rank=2)
    torch.nn.init.normal_(low_rank.up)
    for scale in low_rank.scales:
        torch.nn.init.normal_(scale)
    x, context = torch.randn(2, 5), torch.tensor([[1, 3], [2, 0]], dtype=torch.int32)
    for row in range(2):
        scale = low_rank.scales[0][context[row, 0]] + low_rank.scales[1][context[row, 1]]
        matrix = low_rank.up @ torch.diag(scale) @ low_rank.down
        torch.testing.assert_close(low_rank(x, context)[row], matrix @ x[row])


def gates_alone(layer: RecurrentLayer, x: Tensor, state: Tensor, context: Tensor) -> Tensor:
    """The layer's output with its context matrices folded into the shared ones, row by row."""
    rows = []
    for row in range(len(x)):
        plain = a_layer(layer.cell)
        plain.load_state_dict(layer.state_dict(), strict=False)
        low_rank = layer.transition_context
        scale = torch.diag(low_rank.scales[0][context[row, 0]])
        plain.weight_hidden.data += (low_rank.up @ scale @ low_rank.down).detach()
        rows.append(plain(x[row : row + 1], state[row : row + 1], NO_CONTEXT)[0])
    return torch.cat(rows)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_context_chooses_transition_matrices(cell: Cell) -> None:
    layer = a_layer(cell, transition_sizes=[3])
    torch.nn.init.normal_(layer.transition_context.up)
    torch.nn.init.normal_(layer.transition_context.scales[0])
    x, state = torch.randn(2, 5), torch.randn(2, layer.state_size)
    context = torch.tensor([[1], [2]], dtype=torch.int32)
    torch.testing.assert_close(
        layer(x, state, context)[0], gates_alone(layer, x, state, context), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_one_hot_input_is_the_gates_input_side(cell: Cell) -> None:
    dense = a_layer(cell)
    one_hot = RecurrentLayer(cell, None, 7)
    one_hot.load_state_dict(
        {name: tensor for name, tensor in dense.state_dict().items() if name != "weight_input"}
    )
    x, state = torch.randn(3, 5), torch.randn(3, dense.state_size)
    gates = F.linear(x, dense.weight_input)
    assert gates.shape == (3, 7 * GATES[cell])
    torch.testing.assert_close(one_hot(gates, state, NO_CONTEXT)[0], dense(x, state, NO_CONTEXT)[0])
