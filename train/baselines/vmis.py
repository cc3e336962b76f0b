"""VMIS-kNN: what the most similar of the newest sessions with a shared item clicked.

Kersbergen, Sprangers, Schelter, "Serenade: Low-Latency Session-Based Recommendation in e-Commerce
at Scale" (SIGMOD 2022), section 3; the similarity is that of VS-kNN (Ludewig & Jannach, arXiv
1803.09587).
"""

import numpy as np

from train.baselines.neighbours import Neighbours, Weights, index_sessions
from train.baselines.support import support_base
from train.data.sessions import Sessions

LONGEST_WINDOW = 9  # a match 10 clicks ago would count 1 - 10 / 10


def vmis_knn(
    sessions: Sessions, n_items: int, *, m: int = 500, k: int = 100, window: int = LONGEST_WINDOW
) -> Neighbours:
    """VMIS-kNN over these training sessions.

    With these defaults it reaches its published, untuned figures: .5178/.1832 on Diginetica's
    official test, .6832/.3592 on RSC15-100k's. Raises ValueError unless 0 < k <= m and
    0 < window <= 9.
    """
    if not (0 < k <= m and 0 < window <= LONGEST_WINDOW):
        raise ValueError(
            f"VMIS-kNN takes 0 < k <= m and a window of 1 to {LONGEST_WINDOW} clicks, "
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
    return Neighbours(index, support_base(sessions, n_items), weights, relative=False, m=m, k=k)
