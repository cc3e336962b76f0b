"""A log replayed in order of time: every click is predicted, then learnt from."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from jaxtyping import Float64

from stream.live.blend import Blend, biased, blend, network_candidates
from stream.live.counts import Decayed, transitions
from stream.live.rules import Rules, prefix_class
from stream.live.view import Candidates, View
from train.live.network import Network

MISSED = int(np.iinfo(np.int64).max)
"""The rank of what is no candidate."""
STATIC = "static"
"""The network's own list, as it is served without the stream's help."""


def bias_name(bias: float) -> str:
    """What the network's list with a bias is called."""
    return f"bias-{bias:g}"


@dataclass
class Asked:
    """P predictions: every click of the measured part but the first of its session."""

    prefix: list[int] = field(default_factory=list)
    """Class of what was known of the session."""
    shares: list[Float64[np.ndarray, "V"]] = field(default_factory=list)
    """What each source of the view gave to the click that came."""
    network_shares: list[list[float]] = field(default_factory=list)
    """What the network gave to it, with each bias."""
    ranks: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Its place in each list, behind what scores the same."""

    def shares_with(self, bias: int | None) -> Float64[np.ndarray, "P S"]:
        """What all sources gave to it, the network with one of the biases (None: nothing) last."""
        of_view = np.array(self.shares)
        of_network = (
            np.zeros(len(of_view)) if bias is None else np.array(self.network_shares)[:, bias]
        )
        return np.column_stack([of_view, of_network])


class Replay:
    """The counts of a stream, click by click, beside a frozen network."""

    def __init__(self, rules: Rules, network: Network | None = None) -> None:
        self.rules = rules
        self._view = View(rules)
        self._network = network
        self._counts: dict[int, Decayed[int]] = {}
        self._trails: defaultdict[str, list[int]] = defaultdict(list)
        self._n_known: Counter[str] = Counter()
        # The network's items are the first rows, so that its item_index is the row.
        names = network.catalogue.item_ids if network else []
        self._row = {name: row for row, name in enumerate(names)}
        self._network_items = np.arange(len(names))

    def run(
        self,
        clicks: pl.DataFrame,
        from_ms: int = 0,
        blends: Mapping[str, Blend] | None = None,
        biases: Sequence[float] = (),
    ) -> Asked:
        """Replay clicks, which are in order of time; predict those from that time on.

        blends: lists to rank the clicks in. biases: with which the network is asked by itself,
        those of the blends among them.
        """
        asked = Asked()
        columns = (clicks[name].to_list() for name in ("session_id", "item_id", "timestamp_ms"))
        for session, name, at_ms in zip(*columns, strict=True):
            item = self._row.setdefault(name, len(self._row))
            if at_ms >= from_ms and self._trails[session]:
                self._ask(asked, session, item, at_ms, blends or {}, biases)
            self._learn(session, item, at_ms)
        return asked

    def _learn(self, session: str, item: int, at_ms: int) -> None:
        trail = self._trails[session]
        for former, successor, weight in transitions(trail, item):
            counts = self._counts.get(former)
            if counts is None:
                counts = self._counts[former] = Decayed(self.rules.half_lives_ms, at_ms)
            counts.add(successor, weight, at_ms)
            self._view.put(former, counts)
        self._view.add_click(item, at_ms)
        trail.append(item)
        self._n_known[session] += item < len(self._network_items)

    def _ask(
        self,
        asked: Asked,
        session: str,
        target: int,
        at_ms: int,
        blends: Mapping[str, Blend],
        biases: Sequence[float],
    ) -> None:
        trail = self._trails[session]
        prefix = prefix_class(len(trail))
        of_view = self._view.candidates(trail, at_ms)
        n_sources = len(self.rules.sources)
        hit = of_view.item == target
        asked.prefix.append(prefix)
        asked.shares.append(np.bincount(of_view.source[hit], of_view.share[hit], n_sources))
        of_network: dict[float, Candidates] = {}
        if self._network is not None:
            of_network = self._ask_network(asked, session, target, at_ms, biases)
        excluded = trail if self.rules.excludes_seen else ()
        for name, mixed in blends.items():
            candidates = of_view
            if mixed.weights[prefix, -1] and mixed.bias in of_network:
                candidates = Candidates.of([of_view, of_network[mixed.bias]])
            listed = blend(candidates, mixed.weights[prefix], excluded)
            at = np.flatnonzero(listed.item == target)
            rank = np.count_nonzero(listed.score >= listed.score[at[0]]) if len(at) else MISSED
            asked.ranks[name].append(int(rank))

    def _ask_network(
        self, asked: Asked, session: str, target: int, at_ms: int, biases: Sequence[float]
    ) -> dict[float, Candidates]:
        network, n_known = self._network, self._n_known[session]
        assert network is not None, "the caller has one"
        is_known = target < len(self._network_items)
        found: dict[float, Candidates] = {}
        if not n_known:
            for name in (STATIC, *map(bias_name, biases)):
                asked.ranks[name].append(MISSED)
            asked.network_shares.append([0.0] * len(biases))
            return found
        scores = network.scores(session, n_known).astype(np.float64)
        asked.ranks[STATIC].append(_place(scores, target) if is_known else MISSED)
        rows = self._network_items
        recent = self._view.clicks(rows, at_ms)
        share_known = self._view.share_of(rows)
        if self.rules.excludes_seen:
            scores[[item for item in self._trails[session] if item < len(rows)]] = -np.inf
        shares = []
        for bias in biases:
            with_bias = biased(scores, recent, bias)
            name = bias_name(bias)
            asked.ranks[name].append(_place(with_bias, target) if is_known else MISSED)
            found[bias], of_all = network_candidates(
                with_bias, rows, len(self.rules.sources), share_known
            )
            shares.append(float(of_all[target]) if is_known else 0.0)
        asked.network_shares.append(shares)
        return found


def _place(scores: Float64[np.ndarray, "N"], target: int) -> int:
    """The place of an item, behind what scores the same; one that is in no list has none."""
    if scores[target] == -np.inf:
        return MISSED
    return int(np.count_nonzero(scores >= scores[target]))
