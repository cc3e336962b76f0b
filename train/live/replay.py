"""A log replayed in order of time, as the stream sees it: after a click its list is published."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64, Int64

from stream.contract.click import TRAIL_CLICKS
from stream.live.blend import Blend, biased, blend, network_candidates
from stream.live.counts import Decayed, transitions
from stream.live.rules import NETWORK_BEST, Rules, bias_of, prefix_class
from stream.live.view import Candidates, View
from train.data.order import OWN_MS
from train.data.sessions import TARGET_WEIGHT
from train.live.network import Network
from train.network.checkpoint import Checkpoint

MISSED = int(np.iinfo(np.int64).max)
"""The rank of what is no candidate."""
ASKED = "\0asked"  # no log has a column of this name


class OwnList(NamedTuple):
    """The best of a network's items with a bias, and the rank of the click that came among all."""

    item: Int64[np.ndarray, "n"]
    """Rows of the view, in no order."""
    score: Float64[np.ndarray, "n"]
    rank: int


@dataclass(frozen=True)
class Question:
    """What is known as a list is made, and the click that it is judged by."""

    rules: Rules
    trail: Sequence[int]
    """The session's items, at least one, the latest last; as all items, rows of the view."""
    target: int
    of_view: Candidates
    static_rank: int = MISSED
    """Of the target in the network's list as it is served without the stream's help."""
    of_network: Mapping[float, OwnList] = field(default_factory=dict)
    """By bias; empty where it knows no item of the session."""
    is_known: bool = False
    """Whether the network knows the latest item. It makes no new list after one that it does not:
    its last one still stands by itself, but takes no part in a blend."""
    share_known: float = 0.0
    """Of the recent clicks, those on items that the network knows."""

    @property
    def prefix(self) -> int:
        return prefix_class(len(self.trail))

    @property
    def excluded(self) -> Sequence[int]:
        return self.trail if self.rules.excludes_seen else ()

    def candidates(self, mixed: Blend) -> Candidates:
        """Of all sources that have a weight, with the blend's bias and sharpness."""
        if not self.is_known or not mixed.weights[self.prefix, -1]:
            return self.of_view
        best = self.of_network[mixed.bias]
        source = len(self.rules.sources)
        of_network = network_candidates(
            best.item, best.score, source, self.share_known, mixed.sharpness
        )
        return Candidates.of([self.of_view, of_network])

    def shares(self, mixed: Blend) -> Float64[np.ndarray, "S"]:
        """What each source gives to the click that came, unweighted."""
        given = self.candidates(mixed)
        hit = given.item == self.target
        shares = np.zeros(len(self.rules.sources) + 1)
        shares[given.source[hit]] = given.share[hit]
        return shares

    def rank(self, mixed: Blend) -> int:
        """Of the click that came, behind what scores the same."""
        listed = blend(self.candidates(mixed), mixed.weights[self.prefix], self.excluded)
        at = np.flatnonzero(listed.item == self.target)
        return int(np.count_nonzero(listed.score >= listed.score[at[0]])) if len(at) else MISSED

    def own_rank(self, bias: float) -> int:
        """Of the click that came, in the network's list with a bias."""
        return self.of_network[bias].rank if self.of_network else MISSED


def one_after_the_other(before: pl.DataFrame, newer: pl.DataFrame) -> pl.DataFrame:
    """Both logs' clicks in order of time, with the column ASKED: whether to predict a click.

    Those are the newer log's, but for a session's first and for those whose weight as a target
    is 0.
    """
    both = pl.concat(
        [before.with_columns(pl.lit(False).alias(ASKED)), newer.with_columns(_is_target(newer))],
        how="diagonal_relaxed",
    )
    if OWN_MS in both.columns:
        both = both.with_columns(pl.col(OWN_MS).fill_null(pl.col("timestamp_ms")))
    return both.sort("timestamp_ms", maintain_order=True).with_columns(
        pl.col(ASKED) & ~pl.col("session_id").is_first_distinct()
    )


def newest_clicks(before: pl.DataFrame, newer: pl.DataFrame, most: int) -> pl.DataFrame:
    """The newest clicks of both logs, so many at most, likewise: of them a fifth is asked for, or
    the whole newer log if that is less. Both are in order of their sessions."""
    n_asked = min(len(newer), most // 5)
    asked = newer.tail(n_asked)
    parts = [before.tail(most), newer.head(len(newer) - n_asked)]
    counted = pl.concat(parts, how="diagonal_relaxed")
    return one_after_the_other(counted.tail(most - n_asked), asked)


def network_for(checkpoint: Checkpoint, clicks: pl.DataFrame) -> Network:
    """A network that was shown the sessions of the clicks it is asked for, and no others."""
    network = Network(checkpoint)
    network.show(clicks.filter(pl.col(ASKED).any().over("session_id")))
    return network


def _is_target(clicks: pl.DataFrame) -> pl.Expr:
    weighed = TARGET_WEIGHT in clicks.columns
    return (pl.col(TARGET_WEIGHT) > 0 if weighed else pl.lit(True)).alias(ASKED)


class Replay:
    """The counts of a stream, click by click, beside a frozen network."""

    def __init__(
        self, rules: Rules, network: Network | None = None, biases: Sequence[float] = ()
    ) -> None:
        self.rules = rules
        self._view = View(rules)
        self._network, self._biases = network, biases
        self._counts: dict[int, Decayed[int]] = {}
        self._trails: defaultdict[str, list[int]] = defaultdict(list)
        self._n_known: Counter[str] = Counter()
        # The network's items are the first rows, so that its item_index is the row.
        names = network.catalogue.item_ids if network else []
        self._row = {name: row for row, name in enumerate(names)}
        self._network_items = np.arange(len(names))

    def questions(self, clicks: pl.DataFrame, most: int | None = None) -> Iterator[Question]:
        """Learn from clicks, as ``one_after_the_other`` has ordered them; ask for those it names.

        A list is published right after a click, with that click's time and from the counts before
        it, since what the click itself teaches has not come back yet. It is judged by the session's
        next click. most: so many questions, evenly spread over the clicks; unset: all.
        """
        for session, name, at_ms, target in _steps(clicks, most):
            item = self._row_of(name)
            trail = self._trails[session]
            self._n_known[session] += item < len(self._network_items)
            if target is not None:
                seen = [*trail[1 - TRAIL_CLICKS :], item]
                yield self._question(session, seen, self._row_of(target), at_ms)
            self._learn(trail, item, at_ms)
            trail.append(item)

    def _row_of(self, name: str) -> int:
        return self._row.setdefault(name, len(self._row))

    def _learn(self, trail: Sequence[int], item: int, at_ms: int) -> None:
        for former, successor, weight in transitions(trail, item):
            counts = self._counts.get(former)
            if counts is None:
                counts = self._counts[former] = Decayed(self.rules.half_lives_ms, at_ms)
            counts.add(successor, weight, at_ms)
            self._view.put(former, counts)
        self._view.add_click(item, at_ms)

    def _question(self, session: str, trail: list[int], target: int, at_ms: int) -> Question:
        of_view = self._view.candidates(trail, at_ms)
        n_known = self._n_known[session]
        if self._network is None or not n_known:
            return Question(self.rules, trail, target, of_view)
        scores = self._network.scores(session, n_known).astype(np.float64)
        is_listed = target < len(self._network_items)
        static_rank = _rank(scores, target) if is_listed else MISSED
        items = self._network_items
        recent = self._view.clicks(items, at_ms)
        seen = [item for item in trail if item < len(items)]
        n = min(NETWORK_BEST, len(items))
        of_network = {}
        for bias in self._biases:
            with_bias = biased(scores, recent, bias)
            score, best = torch.from_numpy(with_bias).topk(n, sorted=False)
            if self.rules.excludes_seen:
                with_bias[seen] = -np.inf
            rank = _rank(with_bias, target) if is_listed else MISSED
            of_network[bias] = OwnList(best.numpy(), score.numpy(), rank)
        return Question(
            self.rules,
            trail,
            target,
            of_view,
            static_rank,
            of_network,
            is_known=trail[-1] < len(items),
            share_known=self._view.share_of(items),
        )


def bias_ranks(
    clicks: pl.DataFrame,
    network: Network,
    rules: Sequence[Rules],
    biases: Sequence[float],
    most: int | None = None,
) -> dict[tuple[Rules, float], list[int]]:
    """``own_rank`` of the questions of a ``Replay`` under each of the rules, with each bias.

    In one pass, which counts clicks and no transitions.
    """
    views = [(own, View(own)) for own in rules]
    row_of = network.catalogue.index
    items = np.arange(len(row_of))
    ranks: dict[tuple[Rules, float], list[int]] = {(own, b): [] for own in rules for b in biases}
    trails: defaultdict[str, list[int | None]] = defaultdict(list)
    n_known: Counter[str] = Counter()
    for session, name, at_ms, target_name in _steps(clicks, most):
        item = row_of.get(name)
        trail = trails[session]
        trail.append(item)
        n_known[session] += item is not None
        if target_name is not None:
            target = row_of.get(target_name)
            if target is None or not n_known[session]:
                for of_both in ranks.values():
                    of_both.append(MISSED)
            else:
                scores = network.scores(session, n_known[session]).astype(np.float64)
                seen = [row for row in trail[-TRAIL_CLICKS:] if row is not None]
                for own, view in views:
                    of_clicks = bias_of(view.clicks(items, at_ms), 1.0)
                    for bias in biases:
                        with_bias = scores + bias * of_clicks
                        if own.excludes_seen:
                            with_bias[seen] = -np.inf
                        ranks[own, bias].append(_rank(with_bias, target))
        if item is not None:
            for _, view in views:
                view.add_click(item, at_ms)
    return ranks


class _Step(NamedTuple):
    session: str
    item: str
    at_ms: int
    target: str | None
    """The session's next item, where it is asked for."""


def _steps(clicks: pl.DataFrame, most: int | None) -> Iterator[_Step]:
    """Clicks in their order; ``most`` as for ``Replay.questions``."""
    row = pl.col("row")
    following = clicks.with_row_index("row").select(row.shift(-1).over("session_id"))["row"]
    asked = np.flatnonzero(clicks[ASKED].to_numpy())
    if most is not None and len(asked) > most:
        asked = asked[np.linspace(0, len(asked) - 1, most).astype(np.int64)]
    is_asked = np.zeros(len(clicks) + 1, dtype=bool)
    is_asked[asked] = True
    is_asked = is_asked[following.fill_null(len(clicks)).to_numpy()]
    text = clicks.select(pl.col("session_id", "item_id").cast(pl.String))
    names = text["item_id"].to_list()
    columns = (
        text["session_id"].to_list(),
        names,
        clicks["timestamp_ms"].to_list(),
        following.to_list(),
        is_asked.tolist(),
    )
    for session, name, at_ms, next_row, is_answered in zip(*columns, strict=True):
        yield _Step(session, name, at_ms, names[next_row] if is_answered else None)


def _rank(scores: Float64[np.ndarray, "N"], target: int) -> int:
    """The place of an item, behind what scores the same; one that is in no list has none."""
    if scores[target] == -np.inf:
        return MISSED
    return int(np.count_nonzero(scores >= scores[target]))
