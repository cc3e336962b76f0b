"""What live lists are made with: fitted on sessions that the network has not learnt from."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl
import structlog
from jaxtyping import Float64

from stream.live.blend import Blend, fit_sharpness, fit_weights
from stream.live.rules import PREFIXES, Rules
from train.live.network import Network
from train.live.replay import Question, Replay, bias_ranks

log = structlog.get_logger()

TIME_SCALES_MS = tuple(60_000 * minutes for minutes in (45, 6 * 60, 2 * 1440, 16 * 1440))
"""What ``Rules.time_scale_ms`` is chosen from: a news site, a day's offers, a shop, places."""
POPULARITY_HALF_LIVES_MS = tuple(60_000 * n for n in (3, 24, 3 * 60, 1440, 8 * 1440))
"""What ``Rules.popularity_half_life_ms`` is chosen from. Each time scale is tried with the one in
its place, a sixteenth of it, which remains where no bias gains with another."""
BIASES = (0.0, 0.03, 0.06, 0.1, 0.25, 0.5, 1.0, 2.0)
"""What the bias of the network's own list is chosen from. BPR-max scores lie close together: on
RSC15-100k's newest tenth .03 gains .003 Recall@20 and .25 loses .043."""
NETWORK_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""What the network's likeliest weights are multiplied by: the likeliest blend is not the best
list. On a news site a quarter to a half gave .644/.282, the likeliest .640/.276."""
FEWEST_REPEATS = 0.001
"""Where fewer of the next clicks are on items of the session, those are in no list."""
MOST_ASKED = 5_000
"""So many clicks settings are fitted on, evenly spread: on a news site weights fitted on 2,500 of
22,240 list all of them as well as those fitted on all (.6260/.2691 and .6272/.2693)."""
FEWEST_ASKED = 100
"""Of fewer clicks no settings are fitted."""
STATIC, COUNTS, LIVE = "static", "counts", "live"
LENGTH = 20


class Fitted(NamedTuple):
    """What a log's lists are made with."""

    rules: Rules
    counts: Blend
    """Without the network."""
    live: Blend
    """With it, if there is one. Its bias is what serves the network's own list best."""
    figures: dict[str, dict[str, float]]
    """Of the asked clicks, by the names of the lists."""


def fit_live(clicks: pl.DataFrame, network: Network | None) -> Fitted:
    """What lists the asked clicks best, at least one, ordered by ``one_after_the_other``.

    network: has not learnt from them, and was shown their sessions.
    """
    rules, bias = _choose_rules(clicks), 0.0
    if network:
        rules, bias = _choose_popularity(clicks, network, rules)
    questions = [*Replay(rules, network, [bias]).questions(clicks, MOST_ASKED)]
    uniform = np.ones((PREFIXES, len(rules.sources) + 1))
    counts = _likeliest(questions, Blend(_scaled(uniform, 0.0)))
    of_counts = figures([question.rank(counts) for question in questions])
    if not network:
        return Fitted(rules, counts, counts, {COUNTS: of_counts})
    likeliest = _likeliest(questions, Blend(uniform, bias, _sharpness(questions, bias)))
    weights = [counts.weights, _network_alone(uniform)]
    weights += [_scaled(likeliest.weights, factor) for factor in NETWORK_FACTORS]
    candidates = [replace(likeliest, weights=of_sources) for of_sources in weights]
    ranks = [[question.rank(mixed) for question in questions] for mixed in candidates]
    best = max(range(len(candidates)), key=lambda n: worth(ranks[n]))
    found = {
        STATIC: figures([question.static_rank for question in questions]),
        bias_name(bias): figures([question.own_rank(bias) for question in questions]),
        COUNTS: of_counts,
        LIVE: figures(ranks[best]),
    }
    return Fitted(rules, counts, candidates[best], found)


def bias_name(bias: float) -> str:
    """What the network's own list with a bias is called."""
    return f"bias-{bias:g}"


def figures(ranks: Sequence[int]) -> dict[str, float]:
    """Recall and MRR of lists of 20."""
    rank = np.array(ranks)
    hit = rank <= LENGTH
    return {
        "recall_at_20": round(float(hit.mean()), 4),
        "mrr_at_20": round(float(np.where(hit, 1.0 / rank, 0.0).mean()), 4),
    }


def worth(ranks: Sequence[int]) -> float:
    """By what lists are compared: the sum of both."""
    return sum(figures(ranks).values())


def _choose_rules(clicks: pl.DataFrame) -> Rules:
    """Those under which equally weighted counts list the asked clicks best."""
    excludes_seen = _share_of_repeats(clicks) < FEWEST_REPEATS
    found: dict[Rules, float] = {}
    for time_scale_ms, half_life_ms in zip(TIME_SCALES_MS, POPULARITY_HALF_LIVES_MS, strict=False):
        rules = Rules(time_scale_ms, half_life_ms, excludes_seen)
        n_sources = len(rules.sources) + 1
        equal = Blend(np.full((PREFIXES, n_sources), 1 / n_sources))
        ranks = [q.rank(equal) for q in Replay(rules).questions(clicks, MOST_ASKED)]
        found[rules] = worth(ranks)
        log.info("time_scale_tried", time_scale_s=time_scale_ms // 1000, **figures(ranks))
    return max(found, key=lambda rules: found[rules])


def _choose_popularity(clicks: pl.DataFrame, network: Network, rules: Rules) -> tuple[Rules, float]:
    """The popularity and the bias that list the asked clicks best in the network's own list.

    Where lists are equal, that of the rules; it is what the blend is best with, too: on
    foursquare-nyc's newest tenth a popularity of 8 days instead of one lifts it from .6602/.3014
    to .6644/.3051.
    """
    half_lives_ms = dict.fromkeys([rules.popularity_half_life_ms, *POPULARITY_HALF_LIVES_MS])
    tried = [replace(rules, popularity_half_life_ms=half_life) for half_life in half_lives_ms]
    found = bias_ranks(clicks, network, tried, BIASES, MOST_ASKED)
    best: dict[tuple[Rules, float], float] = {}
    for own in tried:
        ranks = {bias: found[own, bias] for bias in BIASES}
        bias, of_bias = max(ranks.items(), key=lambda item: worth(item[1]))
        best[own, bias] = worth(of_bias)
        half_life_s = own.popularity_half_life_ms // 1000
        log.info("popularity_tried", half_life_s=half_life_s, bias=bias, **figures(of_bias))
    return max(best, key=lambda both: best[both])


def _share_of_repeats(clicks: pl.DataFrame) -> float:
    """How many of the next clicks are on an item of the session."""
    is_next = ~pl.col("session_id").is_first_distinct()
    is_repeat = ~pl.struct("session_id", "item_id").is_first_distinct()  # which is a next click
    n_repeats, n_next = clicks.select(is_repeat.sum(), is_next.sum().alias("next")).row(0)
    return float(n_repeats / max(1, n_next))


def _sharpness(questions: Sequence[Question], bias: float) -> float:
    """Under which softmax the clicks among the network's best are likeliest."""
    lists = [(q.of_network[bias], q.target) for q in questions if q.is_known]
    margins = [
        best.score - best.score[best.item == target]
        for best, target in lists
        if target in best.item
    ]
    return fit_sharpness(np.array(margins)) if margins else 1.0


def _likeliest(questions: Sequence[Question], mixed: Blend) -> Blend:
    """A blend of the same sources, with weights under which the clicks that came are likeliest."""
    shares = np.array([question.shares(mixed) for question in questions])
    prefix = np.array([question.prefix for question in questions])
    return replace(mixed, weights=fit_weights(shares, prefix).round(4))


def _network_alone(weights: Float64[np.ndarray, "C S"]) -> Float64[np.ndarray, "C S"]:
    """Weights without those of the other sources."""
    alone = np.zeros_like(weights)
    alone[:, -1] = weights[:, -1]
    return alone


def _scaled(weights: Float64[np.ndarray, "C S"], factor: float) -> Float64[np.ndarray, "C S"]:
    """Weights with the network's multiplied."""
    scaled = weights.copy()
    scaled[:, -1] *= factor
    return scaled
