"""How good the published lists were, found out from the recommendations topic alone.

The next known click of a session judges the last list that the model made for it. What the demo's
summary, the parity test and the watch view report is computed here; the worker's counters come
from its own state (batch.py) and can be added up over workers. What the parts of a blended list
would be worth alone cannot be found out here: no topic has their lists.
"""

from collections import OrderedDict

from stream.contract.messages import Item, Outcome, Recommendation
from stream.counts import Found, rank_in_list
from stream.counts import Quality as Quality

_MADE = (Outcome.MODEL, Outcome.LIVE)


class Judge:
    """Ranks the clicks of any number of sessions, fed in the order of the clicks topic.

    ``idle_timeout_s`` is the bundle's: a known click after a longer pause opens a session anew
    and judges nothing. ``max_sessions`` bounds the memory by forgetting the sessions that have
    been quiet for longest.
    """

    def __init__(self, idle_timeout_s: int | None, max_sessions: int | None = None) -> None:
        self._idle_timeout_ms = None if idle_timeout_s is None else idle_timeout_s * 1000
        self._max_sessions = max_sessions
        self._last: OrderedDict[str, tuple[list[Item], int]] = OrderedDict()

    def rank(self, recommendation: Recommendation) -> int | None:
        """The rank alone, as ``find``."""
        found = self.find(recommendation)
        return found and found.rank

    def find(self, recommendation: Recommendation) -> Found | None:
        """Look for the answered click in its session's list before; None: there is no list.

        Only lists that were made of this click judge and replace the one before: a repeated event
        is no new click, and an item that a model without a view has never seen is passed over as
        the offline evaluator does.
        """
        outcome, has_view = recommendation.outcome, recommendation.view_ms is not None
        if outcome not in _MADE and not (outcome == Outcome.FALLBACK and has_view):
            return None
        click, found = recommendation.click, None
        click_ms = click.timestamp_ms
        if last := self._last.pop(recommendation.session_id, None):
            items, last_ms = last
            if self._idle_timeout_ms is None or click_ms - last_ms <= self._idle_timeout_ms:
                listed = [item.item_id for item in items]
                rank = rank_in_list(listed, [item.score for item in items], click.item_id)
                found = Found(rank, items[listed.index(click.item_id)].source if rank else None)
            click_ms = max(click_ms, last_ms)
        self._last[recommendation.session_id] = (recommendation.items, click_ms)
        if self._max_sessions is not None and len(self._last) > self._max_sessions:
            self._last.popitem(last=False)
        return found
