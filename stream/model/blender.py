"""A model's lists, blended with what the stream itself has taught."""

from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from stream.contract.click import TRAIL_CLICKS
from stream.live.global_view import GlobalView
from stream.live.lists import POPULARITY, Gathered, Listed, Lister, NetworkBest, Wanted
from stream.live.rules import bias_of
from stream.model.bundle import Live, Manifest
from stream.model.scorer import Scores

Changes = Callable[[], Sequence[tuple[bytes | None, bytes | None]]]
"""What has come of the item-view topic since it was last asked for."""


Seen = Literal["allow", "exclude", "exclude-last"]
"""What becomes of the session's own items in its lists."""
_EXCLUDED: dict[Seen, int] = {"allow": TRAIL_CLICKS, "exclude": 0, "exclude-last": -1}
"""Those of the trail from here on."""


class Ask(NamedTuple):
    """A list that is wanted: of a session of these items, the latest last.

    rank_row: of what the network lists after the same click; -1: it does not know the item.
    """

    trail: Sequence[str]
    n_clicks: int
    now_ms: int
    rank_row: int


class Blender:
    """The view beside one bundle, and the lists of both."""

    def __init__(self, manifest: Manifest, live: Live, item_ids: Sequence[str]) -> None:
        self.view = GlobalView(live.rules, item_ids)
        self.changes: Changes = tuple
        """Asked at each refresh; whoever has a topic to read sets it."""
        self._k = manifest.n_recommendations
        self._bias, self._sharpness = live.bias, live.sharpness
        self.seen: Seen = "exclude" if live.excludes_seen else "allow"
        """What becomes of items of the session; whoever runs the service may set another."""
        self._network_rows = np.arange(manifest.n_items)
        self._lister = Lister(self.view, np.array(live.weights), self._k)
        self._popular = [popular.item_index for popular in manifest.popular]

    def refresh(self) -> None:
        """Let the view know what has come; rows of items may be others then."""
        self.view.take(self.changes())

    def can_list(self) -> bool:
        """Whether there is anything to list for an item that the network does not know."""
        return len(self.view) > 0

    def bias(self) -> Float32[np.ndarray, "N"] | None:
        """What is added to the network's scores, as of the newest click; None: nothing."""
        view = self.view
        if not self._bias or view.as_of_ms is None:
            return None
        clicks = view.clicks(self._network_rows, view.as_of_ms)
        return bias_of(clicks, self._bias).astype(np.float32)

    def popular(self) -> Listed | None:
        """What is popular as of the newest click; None: nobody has clicked anything."""
        as_of_ms = self.view.as_of_ms
        if as_of_ms is None or not self.can_list():
            return None
        listed = self._lister.popular(as_of_ms)
        self._fill(listed, ())
        return listed

    def excluded(self, trail: Sequence[str]) -> list[int]:
        """Rows of the session's own items that are in none of its lists."""
        return [self.view.row(item) for item in trail[_EXCLUDED[self.seen] :]]

    def gather(self, asks: Sequence[Ask]) -> Gathered:
        """What the view has for these lists, one at least. The network need not have listed yet."""
        row, excluded_from = self.view.row, _EXCLUDED[self.seen]
        wanted = []
        for trail, n_clicks, now_ms, rank_row in asks:
            rows = [row(item) for item in trail]
            wanted.append(Wanted(rows, n_clicks, now_ms, rank_row, rows[excluded_from:]))
        return self._lister.gather(wanted)

    def make(self, gathered: Gathered, scores: Scores) -> list[Listed]:
        """The lists that are wanted, of at most K items of the view.

        Where a score of the network is NaN or infinite, its list takes no part.
        """
        with np.errstate(invalid="ignore"):
            behind = scores.top_score.astype(np.float64) - scores.top_score[:, :1]
            exponentials = np.exp(self._sharpness * behind)
            shares = exponentials / exponentials.sum(axis=1, keepdims=True)
            shares *= self.view.known_share()
        finite = np.append(np.isfinite(shares).all(axis=1), False)  # the last: no row
        rows = np.where(finite[gathered.network_rows], gathered.network_rows, -1)
        network = NetworkBest(scores.top_index.astype(np.int64), shares)
        gathered = gathered._replace(network_rows=rows)
        lists = self._lister.make(gathered, network, len(self.view.names))
        begin = 0
        for listed, end in zip(lists, gathered.excluded_ends.tolist(), strict=True):
            if len(listed.items) < self._k:
                self._fill(listed, gathered.excluded[begin:end].tolist())
            begin = end
        return lists

    def _fill(self, listed: Listed, excluded: Sequence[int]) -> None:
        """Let items of the training log, which say nothing of this session, be the rest.

        The popular ones, and any where all of those have been seen.
        """
        taken = {*listed.items, *excluded}
        popular = [item for item in self._popular if item not in taken]
        taken.update(popular)
        others = (item for item in range(len(self._network_rows)) if item not in taken)
        rest = [*islice(chain(popular, others), self._k - len(listed.items))]
        listed.items.extend(rest)
        listed.scores.extend([0.0] * len(rest))
        listed.sources.extend([POPULARITY] * len(rest))
