"""STAN: neighbours by how recent the shared clicks, the session and its other items are.

Garg, Gupta, Malhotra, Vig, Shroff, "Sequence and Time Aware Neighborhood for Session-based
Recommendations" (SIGIR 2019): three exponential decays on top of the cosine of two sessions.
"""

import numpy as np

from train.baselines.neighbours import Neighbours, Weights, index_sessions
from train.baselines.support import support_base
from train.data.sessions import Sessions

WINDOW = 20
"""Last clicks of a session that count; by default the next one would weigh e^-5."""


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
    """STAN over these training sessions.

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
            f"STAN takes 0 < k <= m and scales above 0, found k={k}, m={m}, "
            f"click_scale={click_scale}, session_scale_s={session_scale_s}, "
            f"distance_scale={distance_scale}"
        )
    index = index_sessions(sessions, n_items)
    age_s = (index.last_click_ms.max(initial=0) - index.last_click_ms) / 1000.0
    if session_scale_s is None:
        recency = np.ones(len(age_s))
    else:  # e^-745 would be 0, and a neighbour that old none at all
        recency = np.exp(-np.minimum(age_s / session_scale_s, 600.0))
    ago, distance = np.arange(WINDOW), np.arange(sessions.lengths.max(initial=1))
    weights = Weights(
        click=np.tile(np.exp(-ago / click_scale), (WINDOW, 1)),
        session=recency / np.sqrt(np.maximum(np.diff(index.session_start), 1)),
        match=np.ones(WINDOW),
        item=np.ones(n_items),
        distance=np.exp(-distance / distance_scale),
    )
    return Neighbours(index, support_base(sessions, n_items), weights, relative=True, m=m, k=k)
