"""The first items of each list, clicked or not: coverage and popularity bias of what is shown."""

import numpy as np
from jaxtyping import Float, Int64

from train.measure.compiled import compiled

LIST_LENGTH = 20
_BLOCK = 128


@compiled
def best_items(scores: Float[np.ndarray, "B N"], length: int) -> Int64[np.ndarray, "B length"]:
    """The highest scores of each row, best first, equal ones by item_index; -1 after the last.

    NaN is in no list.
    """
    # Beyond the first few hundred items hardly any enters the list: whether a block of them holds
    # one that does is asked of the whole block at once.
    n_rows, n_items = scores.shape
    items = np.full((n_rows, length), -1, dtype=np.int64)
    best = np.empty(length, dtype=scores.dtype)  # a float64 would be slow to compare with
    for row in range(n_rows):
        filled = 0
        best[:] = -np.inf
        lowest = best[length - 1]
        for first in range(0, n_items, _BLOCK):
            block = scores[row, first : first + _BLOCK]  # from 0 on, or no loop is vectorised
            n_better = 0
            for j in range(len(block)):
                n_better += block[j] > lowest
            if n_better == 0 and filled == length:
                continue
            for j in range(len(block)):
                score = block[j]
                if score > lowest or (filled < length and score == score):
                    place = min(filled, length - 1)
                    while place > 0 and best[place - 1] < score:
                        best[place], items[row, place] = best[place - 1], items[row, place - 1]
                        place -= 1
                    best[place], items[row, place] = score, first + j
                    filled = min(filled + 1, length)
                    lowest = best[length - 1]
    return items


def count_listed(scores: Float[np.ndarray, "B N"], listed: Int64[np.ndarray, "N"]) -> None:
    """Add 1 to every item in the top 20 of each row; see `best_items`."""
    items = best_items(scores, LIST_LENGTH)
    np.add.at(listed, items[items >= 0], 1)


def list_figures(
    listed: Int64[np.ndarray, "N"], support: Int64[np.ndarray, "N"]
) -> dict[str, float]:
    """Coverage and popularity bias of a model's top-20 lists.

    `coverage_at_20`: share of the catalogue that stands in at least one list. `gini_at_20`: how
    unevenly the lists share the catalogue, 0 evenly, towards 1 all of them the same few items.
    `log_support_at_20`: mean over list entries of ln(1 + clicks on the item in training).
    """
    entries = max(1, int(listed.sum()))
    n_items = max(1, len(listed))
    place = np.arange(1, len(listed) + 1)
    gini = float(((2 * place - n_items - 1) * np.sort(listed)).sum()) / (n_items * entries)
    return {
        "coverage_at_20": float(np.count_nonzero(listed)) / n_items,
        "gini_at_20": gini,
        "log_support_at_20": float((listed * np.log1p(support)).sum()) / entries,
    }
