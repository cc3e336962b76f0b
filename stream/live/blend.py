"""One list from all sources: their shares, weighted and added up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from stream.live.rules import PREFIXES, bias_of
from stream.live.view import Candidates

SHARPNESSES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""Cross-entropy has learnt how sharp its softmax is, BPR-max has not: on RSC15-100k a blend gains
.009/.005 from 3."""


@dataclass(frozen=True)
class Blend:
    """What each source counts, and how much the network is told of popularity."""

    weights: Float64[np.ndarray, "C S"]
    """By class of prefix, of the view's sources and, last, of the network."""
    bias: float = 0.0
    sharpness: float = 1.0
    """What the network's scores are multiplied by before the softmax."""


class Scored(NamedTuple):
    """Items of one session, the best first; equal ones by row."""

    item: Int64[np.ndarray, "N"]
    score: Float64[np.ndarray, "N"]


def blend(
    candidates: Candidates,
    weights: Float64[np.ndarray, "S"],
    excluded: Sequence[int] = (),
) -> Scored:
    """p(j) = sum over the sources of w_s p_s(j), for every candidate above 0 that is finite."""
    items, place = np.unique(candidates.item, return_inverse=True)
    worth = weights[candidates.source] * candidates.share
    score = np.bincount(place, weights=worth, minlength=len(items))
    wanted = (score > 0) & (score < np.finfo(np.float32).max)
    if len(excluded):
        wanted &= ~np.isin(items, excluded)
    items, score = items[wanted], score[wanted]
    order = np.argsort(-score, kind="stable")
    return Scored(items[order], score[order])


def biased(
    scores: Float[np.ndarray, "N"], clicks: Float64[np.ndarray, "N"], bias: float
) -> Float64[np.ndarray, "N"]:
    """A network's scores, with the logarithm of its items' decayed clicks added ``bias`` times."""
    return np.asarray(scores + bias_of(clicks, bias), dtype=np.float64)


def network_candidates(
    items: Int64[np.ndarray, "n"],
    scores: Float64[np.ndarray, "n"],
    source: int,
    share_known: float,
    sharpness: float = 1.0,
) -> Candidates:
    """A network's best items, which rank.onnx lists, as candidates: the softmax over them.

    items: as rows of the view. share_known: what part of the recent clicks was on the network's
    items: it cannot give what it does not know.
    """
    exponentials = np.exp(sharpness * (scores - scores.max()))
    shares = exponentials * (share_known / exponentials.sum())
    return Candidates(items, np.full(len(items), source), shares)


def fit_sharpness(margins: Float64[np.ndarray, "P n"]) -> float:
    """The sharpness under which the clicks that came are likeliest.

    margins: of each list, what its items score beyond the one that was clicked, which is among
    them.
    """
    return min(SHARPNESSES, key=lambda by: np.logaddexp.reduce(by * margins, axis=1).mean())


def fit_weights(
    shares: Float64[np.ndarray, "P S"], prefix: Int64[np.ndarray, "P"], steps: int = 60
) -> Float64[np.ndarray, "C S"]:
    """The weights under which the clicks that came are likeliest, by class of prefix.

    shares: what each source gave to the click that came. Expectation maximisation of a mixture's
    weights (Dempster, Laird & Rubin, 1977) from equal ones. A class without such clicks takes the
    weights of all.
    """
    weights = np.zeros((PREFIXES, shares.shape[1]))
    told = shares.sum(axis=1) > 0
    for n in range(PREFIXES):
        of_class = told & (prefix == n)
        rows = shares[of_class if of_class.any() else told]
        w = np.full(shares.shape[1], 1.0 / shares.shape[1])
        for _ in range(steps if len(rows) else 0):
            part = rows * w
            w = (part / part.sum(axis=1, keepdims=True)).mean(axis=0)
        weights[n] = w
    return weights
