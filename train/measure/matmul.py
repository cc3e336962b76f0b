"""Queries times every row of a table, as fast as one core multiplies."""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class RowProduct:
    """`query @ rows.T + bias` of one table for many queries, without gradients.

    On a CPU the table is laid out once for oneDNN: 8 rows and more take 91 us each at 43,097 items
    and H = 100, 95 GFLOP/s, where `F.linear`, which calls MKL, takes 160 to 190 on an AMD core
    (bench/results/evaluate.json). Later changes of the table are not seen. Elsewhere `F.linear`.
    """

    def __init__(self, rows: Float[Tensor, "N H"], bias: Float[Tensor, "N"]) -> None:
        self._rows, self._bias = rows.detach(), bias.detach()
        # PyTorch packs so itself when it compiles a frozen model; it has no public name for it.
        packable = rows.device.type == "cpu" and rows.dtype == torch.float32 and len(rows) > 0
        self._is_packed = packable and torch._C._has_mkldnn
        if self._is_packed:
            self._rows = torch.ops.mkldnn._reorder_linear_weight(self._rows.contiguous(), None)

    def __call__(self, query: Float[Tensor, "b H"]) -> Float[Tensor, "b N"]:
        """The scores, in memory of their own.

        Up to 32 MiB the allocator hands the same memory out again and again; a larger matrix is
        mapped anew, and touching its pages for the first time costs 60 us a row.
        """
        if not self._is_packed:
            return F.linear(query, self._rows, self._bias)
        scores = torch.ops.mkldnn._linear_pointwise(query, self._rows, self._bias, "none", [], "")
        return cast(Tensor, scores)
