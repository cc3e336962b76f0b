"""Votes of past sessions that share items with the one at hand, found through an inverted index.

Of the sessions that contain any of the known items only the m newest are looked at (Jannach &
Ludewig, RecSys 2017). Each item's sessions stand newest first, so merging the lists of the known
items yields exactly those m, with what they share, and stops. Of these the k most similar vote for
their items. VMIS-kNN and STAN differ in the weights alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int32, Int64

from stream.live.compiled import compiled
from train.baselines.popularity import item_support, tie_break
from train.baselines.votes import Votes, vote_scores
from train.data.sessions import Sessions
from train.measure.ranking import SessionBatch

LONGEST_WINDOW = 9  # a match 10 clicks ago would count 1 - 10 / 10 in VMIS-kNN
STAN_WINDOW = 20
"""Last clicks that count in STAN; by default the next one would weigh e^-5."""


class SessionIndex(NamedTuple):
    """Training sessions both ways: items by session and sessions by item. Sessions are renumbered
    in order of their last click: of two, the larger is the newer."""

    posting_start: Int64[np.ndarray, "N_plus_1"]
    posting: Int32[np.ndarray, "pairs"]
    """Sessions of item i, newest first: `posting_start[i]:posting_start[i + 1]`."""
    session_start: Int64[np.ndarray, "S_plus_1"]
    item: Int32[np.ndarray, "pairs"]
    """Items of session s, each once: `session_start[s]:session_start[s + 1]`."""
    position: Int32[np.ndarray, "pairs"]
    """The number of that item's last click in the session."""
    last_click_ms: Int64[np.ndarray, "S"]


class Weights(NamedTuple):
    """What clicks, sessions and items count; w is the number of last clicks that count at all."""

    click: Float64[np.ndarray, "w w"]
    """What a shared item adds to the similarity: row n - 1 for n known clicks, by the clicks since
    its last one."""
    session: Float64[np.ndarray, "S"]
    """What the similarity to a session is multiplied by."""
    match: Float64[np.ndarray, "w"]
    """What a session's votes count, by the clicks since the newest shared item."""
    item: Float64[np.ndarray, "N"]
    """What a vote for an item counts."""
    distance: Float64[np.ndarray, "longest"]
    """The same by the clicks between it and the newest shared item in the voting session; empty
    where that does not matter."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Votes of the k most similar among the m newest sessions that share a click."""

    index: SessionIndex
    base: Float32[np.ndarray, "N"]
    """Scores without any vote: they order what the votes leave equal."""
    weights: Weights
    relative: bool
    """Whether votes are divided by the similarity of the most similar session."""
    m: int
    k: int

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """The neighbours' votes; items without one by support."""
        return vote_scores(batch, self.base, self._votes)

    def _votes(self, prefix: Int64[np.ndarray, "b t"]) -> Votes:
        recent = np.ascontiguousarray(prefix[:, -len(self.weights.match) :])
        return _votes(recent, self.index, self.weights, self.relative, self.m, self.k)


def vmis_knn(
    sessions: Sessions, n_items: int, *, m: int = 500, k: int = 100, window: int = LONGEST_WINDOW
) -> Neighbours:
    """Kersbergen, Sprangers, Schelter, "Serenade" (SIGMOD 2022), section 3, with the similarity of
    VS-kNN (Ludewig & Jannach, arXiv 1803.09587).

    With these defaults it reaches its published, untuned figures: .5178/.1832 on Diginetica's
    official test, .6832/.3592 on RSC15-100k's. Raises ValueError unless 0 < k <= m and
    0 < window <= 9.
    """
    if not (0 < k <= m and 0 < window <= LONGEST_WINDOW):
        raise ValueError(
            f"VMIS-kNN requires 0 < k <= m and a window of 1 to {LONGEST_WINDOW} clicks, "
            f"found k={k}, m={m}, window={window}"
        )
    index = index_sessions(sessions, n_items)
    n_sessions, ago = len(index.last_click_ms), np.arange(window)
    known = np.arange(1, window + 1)[:, None]
    weights = Weights(
        click=np.maximum(known - ago, 0) / known,
        session=np.ones(n_sessions),
        match=1.0 - 0.1 * (ago + 1),  # the last click stands at position 1
        item=np.log(n_sessions / np.maximum(np.diff(index.posting_start), 1)),
        distance=np.empty(0),
    )
    return Neighbours(index, _base(sessions, n_items), weights, relative=False, m=m, k=k)


def stan(
    sessions: Sessions,
    n_items: int,
    *,
    click_scale: float = 4.0,
    session_scale_s: float | None = None,
    distance_scale: float = 4.0,
    m: int = 2500,
    k: int = 500,
) -> Neighbours:
    """Garg et al., "Sequence and Time Aware Neighborhood for Session-based Recommendations" (SIGIR
    2019): three exponential decays on top of the cosine of two sessions.

    The scales are the paper's lambdas: clicks since a shared item's last one (1), the session's
    age in seconds (2; None: no such decay), and clicks between an item and the newest shared one
    in the neighbour (3). The age counts from the log's end: counted from the moment of the
    prediction, all weights would change by one factor, which changes no order. For the same
    reason votes are relative to the most similar session's, or those of old sessions would fall
    below the tie-break. Raises ValueError unless all scales are above 0 and 0 < k <= m.
    """
    scales = [click_scale, distance_scale, 1.0 if session_scale_s is None else session_scale_s]
    if not (0 < k <= m and min(scales) > 0):
        raise ValueError(
            f"STAN requires 0 < k <= m and scales above 0, found k={k}, m={m}, "
            f"click_scale={click_scale}, session_scale_s={session_scale_s}, "
            f"distance_scale={distance_scale}"
        )
    index = index_sessions(sessions, n_items)
    age_s = (index.last_click_ms.max(initial=0) - index.last_click_ms) / 1000.0
    if session_scale_s is None:
        recency = np.ones(len(age_s))
    else:  # e^-745 would be 0, and a neighbour that old none at all
        recency = np.exp(-np.minimum(age_s / session_scale_s, 600.0))
    ago, distance = np.arange(STAN_WINDOW), np.arange(sessions.lengths.max(initial=1))
    weights = Weights(
        click=np.tile(np.exp(-ago / click_scale), (STAN_WINDOW, 1)),
        session=recency / np.sqrt(np.maximum(np.diff(index.session_start), 1)),
        match=np.ones(STAN_WINDOW),
        item=np.ones(n_items),
        distance=np.exp(-distance / distance_scale),
    )
    return Neighbours(index, _base(sessions, n_items), weights, relative=True, m=m, k=k)


def _base(sessions: Sessions, n_items: int) -> Float32[np.ndarray, "N"]:
    """Support far below 1: votes are not whole numbers."""
    return (1e-6 * tie_break(item_support(sessions, n_items))).astype(np.float32)


def index_sessions(sessions: Sessions, n_items: int) -> SessionIndex:
    """The index of these sessions."""
    n_sessions, lengths = len(sessions), sessions.lengths
    last_click_ms = sessions.timestamp_ms[sessions.start[1:] - 1]
    oldest_first = np.argsort(last_click_ms, kind="stable")
    number = np.empty(n_sessions, dtype=np.int64)
    number[oldest_first] = np.arange(n_sessions)
    position = np.arange(sessions.n_clicks) - np.repeat(sessions.start[:-1], lengths)
    pair = np.repeat(number, lengths) * n_items + sessions.item_index
    # Of equal pairs np.unique finds the first: from the end that is the item's last click.
    unique, from_end = np.unique(pair[::-1], return_index=True)
    session, item = np.divmod(unique, n_items)
    newest_first = np.lexsort((-session, item))
    return SessionIndex(
        posting_start=np.searchsorted(item[newest_first], np.arange(n_items + 1)),
        posting=session[newest_first].astype(np.int32),
        session_start=np.searchsorted(session, np.arange(n_sessions + 1)),
        item=item.astype(np.int32),
        position=position[::-1][from_end].astype(np.int32),
        last_click_ms=last_click_ms[oldest_first],
    )


@compiled
def distinct_items(
    clicks: Int64[np.ndarray, "t"], item: Int64[np.ndarray, "t"], ago: Int64[np.ndarray, "t"]
) -> int:
    """How many items these clicks are on; `item` takes them, newest first, `ago` their age. The age
    of an item is the number of clicks since its last one."""
    n = 0
    for back in range(len(clicks)):
        clicked = clicks[len(clicks) - 1 - back]
        seen = False
        for known in range(n):
            seen = seen or item[known] == clicked
        if not seen:
            item[n], ago[n] = clicked, back
            n += 1
    return n


@compiled
def merge_newest(
    item: Int64[np.ndarray, "n"],
    weight: Float64[np.ndarray, "n"],
    index: SessionIndex,
    session: Int64[np.ndarray, "m"],
    similarity: Float64[np.ndarray, "m"],
    match: Int64[np.ndarray, "m"],
) -> int:
    """How many of the at most m newest sessions with any of these items there are; fills three.

    `similarity` adds up the weights of the shared items, `match` is the first of those in `item`.
    One scan over the heads of the n lists a session found: n is small, and no table of all
    sessions has to be kept or cleared.
    """
    n_items = len(item)
    posting_start, posting = index.posting_start, index.posting
    at = np.empty(n_items, dtype=np.int64)
    head = np.empty(n_items, dtype=np.int64)
    for i in range(n_items):
        at[i] = posting_start[item[i]]
        head[i] = posting[at[i]] if at[i] < posting_start[item[i] + 1] else -1
    n = 0
    while n < len(session):
        newest = -1
        for i in range(n_items):
            newest = max(newest, head[i])
        if newest < 0:
            break
        shared = 0.0
        first = -1
        for i in range(n_items):
            if head[i] == newest:
                shared += weight[i]
                if first < 0:
                    first = i
                at[i] += 1
                head[i] = posting[at[i]] if at[i] < posting_start[item[i] + 1] else -1
        session[n], similarity[n], match[n] = newest, shared, first
        n += 1
    return n


@compiled
def keep_most_similar(
    similarity: Float64[np.ndarray, "n"], k: int, kept: Int64[np.ndarray, "k"]
) -> int:
    """How many of n sessions are kept, at most k: the most similar, equal ones from the front."""
    n = len(similarity)
    if n <= k:
        for i in range(n):
            kept[i] = i
        return n
    bar = np.partition(similarity, n - k)[n - k]
    n_above = 0
    for i in range(n):
        n_above += similarity[i] > bar
    n_equal = k - n_above
    n_kept = 0
    for i in range(n):
        if similarity[i] > bar or (similarity[i] == bar and n_equal > 0):
            n_equal -= similarity[i] == bar
            kept[n_kept] = i
            n_kept += 1
    return n_kept


@compiled
def _votes(
    recent: Int64[np.ndarray, "b t"],
    index: SessionIndex,
    weights: Weights,
    relative: bool,
    m: int,
    k: int,
) -> Votes:
    n_rows, n_clicks = recent.shape
    item = np.empty(n_clicks, dtype=np.int64)
    ago = np.empty(n_clicks, dtype=np.int64)
    session = np.empty(m, dtype=np.int64)
    similarity = np.empty(m, dtype=np.float64)
    match = np.empty(m, dtype=np.int64)
    kept = np.empty(k, dtype=np.int64)
    start = np.zeros(n_rows + 1, dtype=np.int64)
    voted = np.empty(1024, dtype=np.int32)
    points = np.empty(1024, dtype=np.float64)
    by_distance = len(weights.distance) > 0
    n_votes = 0
    for row in range(n_rows):
        n_items = distinct_items(recent[row], item, ago)
        shared = weights.click[n_clicks - 1][ago[:n_items]]
        n_found = merge_newest(item[:n_items], shared, index, session, similarity, match)
        for i in range(n_found):
            similarity[i] *= weights.session[session[i]]
        n_kept = keep_most_similar(similarity[:n_found], k, kept)
        scale = 1.0
        if relative:
            scale = 0.0
            for i in kept[:n_kept]:
                scale = max(scale, similarity[i])
        for i in kept[:n_kept]:
            vote = similarity[i] * weights.match[ago[match[i]]] / scale
            first, end = index.session_start[session[i]], index.session_start[session[i] + 1]
            matched = 0
            for at in range(first, end if by_distance else first):
                if index.item[at] == item[match[i]]:
                    matched = index.position[at]
            for at in range(first, end):
                if n_votes == len(voted):
                    voted = np.concatenate((voted, np.empty_like(voted)))
                    points = np.concatenate((points, np.empty_like(points)))
                voted[n_votes] = index.item[at]
                points[n_votes] = vote * weights.item[index.item[at]]
                if by_distance:
                    points[n_votes] *= weights.distance[abs(index.position[at] - matched)]
                n_votes += 1
        start[row + 1] = n_votes
    return Votes(start, voted[:n_votes], points[:n_votes])
