"""Sessions that share items with the one at hand, found through an inverted index.

Of the sessions that contain any of the known items only the m newest are looked at (Jannach &
Ludewig, RecSys 2017; Kersbergen et al., SIGMOD 2022). Each item's sessions stand newest first, so
merging the lists of the known items yields exactly those m, with what they share, and stops.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Int64

from train.data.sessions import Sessions
from train.measure.compiled import compiled


@dataclass(frozen=True, slots=True)
class SessionIndex:
    """Training sessions both ways: items by session and sessions by item.

    Sessions are renumbered in order of their last click, so that of two the larger is the newer.
    """

    posting_start: Int64[np.ndarray, "N_plus_1"]
    posting: Int32[np.ndarray, "pairs"]
    """Sessions of item i, newest first: `posting_start[i]:posting_start[i + 1]`."""
    session_start: Int64[np.ndarray, "S_plus_1"]
    item: Int32[np.ndarray, "pairs"]
    """Items of session s, each once: `session_start[s]:session_start[s + 1]`."""
    position: Int32[np.ndarray, "pairs"]
    """The number of that item's last click in the session."""
    last_click_ms: Int64[np.ndarray, "S"]

    @property
    def n_sessions(self) -> int:
        return len(self.last_click_ms)

    def sessions_of_item(self) -> Int64[np.ndarray, "N"]:
        """Sessions that contain each item."""
        return np.diff(self.posting_start)


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
    """How many items these clicks are on; `item` takes them, newest first, `ago` their age.

    The age of an item is the number of clicks since its last one.
    """
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
    posting_start: Int64[np.ndarray, "N_plus_1"],
    posting: Int32[np.ndarray, "pairs"],
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
