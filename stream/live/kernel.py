"""What ``blend`` says, for many sessions at once and compiled: 6 us a list, where numpy took 25."""

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt8

from stream.live.compiled import compiled
from stream.live.rules import DISTANCES, SHRINKAGE, SOURCES

STEPS = len(DISTANCES)
N_SOURCES = len(SOURCES)
TRANSITIONS, POPULARITY, NETWORK, SESSION = map(
    SOURCES.index, ("transitions", "popularity", "network", "session")
)


@compiled
def best_of_blend(
    trails: Int64[np.ndarray, "T"],
    trail_ends: Int64[np.ndarray, "B"],
    classes: Int64[np.ndarray, "B"],
    now_ms: Int64[np.ndarray, "B"],
    excluded: Int64[np.ndarray, "X"],
    excluded_ends: Int64[np.ndarray, "B"],
    followed: Int64[np.ndarray, "B steps"],
    begins: Int64[np.ndarray, "F+1"],
    successors: Int64[np.ndarray, "C"],
    counts: Float32[np.ndarray, "R*C"],
    totals: Float64[np.ndarray, "F*R"],
    landmarks_ms: Int64[np.ndarray, "F"],
    half_lives_ms: Float64[np.ndarray, "R"],
    popular: Int64[np.ndarray, "P"],
    popular_shares: Float64[np.ndarray, "P"],
    network_rows: Int64[np.ndarray, "B"],
    network: Int64[np.ndarray, "Q N"],
    network_shares: Float64[np.ndarray, "Q N"],
    weights: Float64[np.ndarray, "classes S"],
    cell_of: Int32[np.ndarray, "rows"],
    k: int,
) -> tuple[
    Int64[np.ndarray, "B K"],
    Float32[np.ndarray, "B K"],
    UInt8[np.ndarray, "B K"],
    Int64[np.ndarray, "B"],
]:
    """The K best items of B sessions: rows, scores and sources, best first, and how many there are.

    trails: the sessions' items, one session behind the other, each at least one, the latest last.
    excluded: what is not listed, in the same way. followed: for the last item, the one before it,
    and so on, which of the F items with successors it is; -1: none. begins: where the successors of
    each are. counts, totals: item by item, its numbers of the first rate, of the second, and so on.
    network_rows: which of the network's lists is the session's; -1: none. cell_of: -1 for all rows
    of the view; it is left so. Equal scores: lower row first.
    """
    n_lists, n_rates = len(trail_ends), len(half_lives_ms)
    of_popularity = STEPS * n_rates
    of_last, of_earlier, of_network = of_popularity + 1, of_popularity + 2, of_popularity + 3
    widest = 0
    for f in range(len(landmarks_ms)):
        widest = max(widest, begins[f + 1] - begins[f])
    most = STEPS * widest + len(popular) + network.shape[1]
    item = np.empty(most + len(trails), np.int64)
    score = np.empty(most + len(trails))
    given = np.empty((most + len(trails), N_SOURCES))
    factor = np.empty(n_rates)
    rows = np.full((n_lists, k), -1, np.int64)
    scores = np.zeros((n_lists, k), np.float32)
    sources = np.zeros((n_lists, k), np.uint8)
    sizes = np.zeros(n_lists, np.int64)
    cells = np.empty(k, np.int64)
    first = first_excluded = 0
    for c in range(len(popular)):  # those of every list have the same cells in all
        item[c] = popular[c]
        cell_of[popular[c]] = c
    for b in range(n_lists):
        w, n = weights[classes[b]], len(popular)
        end = trail_ends[b]
        given[:n] = 0.0
        for c in range(n):
            score[c] = given[c, POPULARITY] = w[of_popularity] * popular_shares[c]
        # Every source adds what it gives of an item to the item's cell.
        for step in range(STEPS):
            f = followed[b, step]
            if f < 0:
                continue
            for r in range(n_rates):
                halvings = (now_ms[b] - landmarks_ms[f]) / half_lives_ms[r]
                total = totals[f * n_rates + r] + SHRINKAGE * 2.0 ** min(halvings, 1000.0)
                factor[r] = w[step * n_rates + r] / total
            begin, n_successors = begins[f], begins[f + 1] - begins[f]
            for c in range(n_successors):
                worth = 0.0
                for r in range(n_rates):
                    worth += counts[n_rates * begin + r * n_successors + c] * factor[r]
                row = successors[begin + c]
                n = _add(cell_of, item, score, given, n, row, worth, TRANSITIONS)
        q = network_rows[b]
        if q >= 0:
            for c in range(network.shape[1]):
                worth = w[of_network] * network_shares[q, c]
                n = _add(cell_of, item, score, given, n, network[q, c], worth, NETWORK)
        last = trails[end - 1]
        n = _add(cell_of, item, score, given, n, last, w[of_last], SESSION)
        of_ages = 0.0
        for at in range(first, end - 1):
            if _is_latest(trails, at, end):
                of_ages += 1.0 / (end - 1 - at)
        for at in range(first, end - 1):
            if _is_latest(trails, at, end):
                worth = w[of_earlier] / ((end - 1 - at) * of_ages)
                n = _add(cell_of, item, score, given, n, trails[at], worth, SESSION)
        for at in range(first_excluded, excluded_ends[b]):
            if cell_of[excluded[at]] >= 0:
                score[cell_of[excluded[at]]] = 0.0
        first, first_excluded = end, excluded_ends[b]
        # The best so far are kept in order.
        size = 0
        for c in range(len(popular), n):
            cell_of[item[c]] = -1
        for c in range(n):
            of_cell = np.float32(score[c])
            if not 0.0 < of_cell < np.inf:  # not even where a stranger has written weights
                continue
            at = size
            while at > 0 and (
                scores[b, at - 1] < of_cell
                or (scores[b, at - 1] == of_cell and rows[b, at - 1] > item[c])
            ):
                at -= 1
            if at == k:
                continue
            size = min(size + 1, k)
            for moved in range(size - 1, at, -1):
                scores[b, moved], rows[b, moved] = scores[b, moved - 1], rows[b, moved - 1]
                cells[moved] = cells[moved - 1]
            scores[b, at], rows[b, at], cells[at] = of_cell, item[c], c
        sizes[b] = size
        for at in range(size):
            sources[b, at] = np.argmax(given[cells[at]])
    for c in range(len(popular)):
        cell_of[popular[c]] = -1
    return rows, scores, sources, sizes


@compiled
def _add(
    cell_of: Int32[np.ndarray, "rows"],
    item: Int64[np.ndarray, "cells"],
    score: Float64[np.ndarray, "cells"],
    given: Float64[np.ndarray, "cells sources"],
    n: int,
    row: int,
    worth: float,
    source: int,
) -> int:
    """Let a source give so much to a row of the view; returns the number of cells in use."""
    cell = cell_of[row]
    if cell < 0:
        cell = cell_of[row] = n
        item[n], score[n] = row, 0.0
        given[n] = 0.0
        n += 1
    score[cell] += worth
    given[cell, source] += worth
    return n


@compiled
def _is_latest(trails: Int64[np.ndarray, "T"], at: int, end: int) -> bool:
    """Whether the item there does not come again in the same trail."""
    for later in range(at + 1, end):  # noqa: SIM110  # numba compiles no generators
        if trails[later] == trails[at]:
            return False
    return True
