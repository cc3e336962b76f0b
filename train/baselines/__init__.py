"""What people would use instead of a network, each a `Predictor` of `train/evaluate.py`.

Items that a baseline knows nothing of are ordered by their support in the training log.
"""

from train.baselines.popularity import Pop, SessionPop
from train.baselines.rules import Markov, Rules, count_transitions
from train.baselines.votes import item_support
from train.evaluate import Predictor
from train.sessions import Sessions

__all__ = [
    "Markov",
    "Pop",
    "Rules",
    "SessionPop",
    "build_baselines",
    "count_transitions",
    "item_support",
]


def build_baselines(sessions: Sessions, n_items: int) -> dict[str, Predictor]:
    """The three that every training is held against, by the name figures are kept under."""
    support = item_support(sessions, n_items)
    return {
        "pop": Pop(support.astype(float)),
        "s-pop": SessionPop(support),
        "markov": count_transitions(sessions, n_items),
    }
