import pytest
import torch

from train.measure.predictor import RowProduct


@pytest.mark.parametrize("n_queries", [0, 1, 3, 40])
def test_scores_are_the_linear_layers(n_queries: int) -> None:
    torch.manual_seed(3)
    rows, bias, query = torch.randn(101, 17), torch.randn(101), torch.randn(n_queries, 17)
    expected = torch.nn.functional.linear(query, rows, bias)
    with torch.inference_mode():
        scores = RowProduct(rows, bias)(query)
    assert scores.shape == expected.shape
    assert torch.allclose(scores, expected, atol=1e-5)


def test_a_table_of_double_precision_is_multiplied_as_it_is() -> None:
    rows, bias, query = (torch.randn(*size, dtype=torch.float64) for size in ((9, 4), (9,), (2, 4)))
    assert RowProduct(rows, bias)(query).dtype == torch.float64
