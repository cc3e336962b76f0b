"""The view as a worker has it: read from records of the item-view topic, in whatever order."""

from array import array
from collections.abc import Iterable, Sequence
from math import inf

import numpy as np

from stream.contract.items import ItemRecord, head_of
from stream.live.rules import Rules
from stream.live.view import Successors, View

DECODED = 20_000
"""Most items whose successors are kept as arrays, 1.7 kB each; the others are decoded anew."""
SPARE_ROWS = 10_000


class GlobalView(View):
    """Counts of all items that were clicked lately, each of which has a row.

    The items of a network have the first rows, so that its item_index is the row. Rows of items
    that are gone are not given to others before ``take`` numbers all of them anew, which it does
    when most of them are: between two calls a row means the same item.
    """

    def __init__(self, rules: Rules, item_ids: Sequence[str] = ()) -> None:
        super().__init__(rules)
        self._first = item_ids
        self.names: list[str] = []
        self._records: dict[int, bytes] = {}
        self.as_of_ms: int | None = None
        """Time of the newest click that the view knows of."""
        self.n_unreadable = 0
        self._number_anew()

    def __len__(self) -> int:
        """Items that were clicked lately."""
        return len(self._records)

    def row(self, item_id: str) -> int:
        """Return an item's row, a new one if it has none."""
        row = self._rows.get(item_id)
        if row is None:
            row = self._rows[item_id] = len(self.names)
            self.names.append(item_id)
        return row

    def take(self, changes: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Take records of the topic, the oldest of an item first.

        A record that is none, which only somebody else can have written, is counted in
        ``n_unreadable`` and changes nothing.
        """
        if len(self.names) > len(self._first) + 2 * len(self._records) + SPARE_ROWS:
            self._number_anew()
        for key, raw in changes:
            try:
                item_id = (key or b"").decode()
                if raw is not None:
                    head = head_of(raw)
            except ValueError:
                self.n_unreadable += 1
                continue
            if raw is None:
                self._drop(item_id)
                continue
            row = self.row(item_id)
            self._records[row] = raw
            self._successors.pop(row, None)
            self._set_clicks(row, head.clicks, head.as_of_ms)
            if self.as_of_ms is None or head.as_of_ms > self.as_of_ms:
                self.as_of_ms = head.as_of_ms

    def known_share(self) -> float:
        """The share of the recent clicks that were on the network's items."""
        known = self._popularity[: len(self._first)]
        total = self._popularity.sum()
        return float(known.sum() / total) if total else 1.0

    def _drop(self, item_id: str) -> None:
        row = self._rows.get(item_id)
        if row is not None and self._records.pop(row, None) is not None:
            self._successors.pop(row, None)
            self._popularity[row] = 0.0

    def _set_clicks(self, row: int, clicks: float, as_of_ms: int) -> None:
        grown = self._grown(as_of_ms)
        self._grow_to(row)
        self._popularity[row] = clicks * grown

    def following(self, item: int) -> Successors | None:
        """As ``View.following``."""
        found = self._successors.get(item)
        if found is None and (raw := self._records.get(item)) is not None:
            if len(self._successors) >= DECODED:
                self._successors.clear()
            try:
                record = ItemRecord.decode(raw)
                if len(record.totals) != len(self.rules.half_lives_ms):
                    raise ValueError("the counts of other half-lives")
                if "" in record.successor or not all(0.0 <= t < inf for t in record.totals):
                    raise ValueError("no counts")
            except ValueError:
                self.n_unreadable += 1
                del self._records[item]
                return None
            try:
                items = array("q", map(self._rows.__getitem__, record.successor))
            except KeyError:
                items = array("q", map(self.row, record.successor))
            landmark_ms = record.head.landmark_ms
            found = Successors(items, record.weights, record.totals, landmark_ms)
            self._successors[item] = found
        return found

    def _number_anew(self) -> None:
        """Give rows to the network's items and those that are known, and to no others."""
        before = [(self.names[row], raw) for row, raw in self._records.items()]
        self.names = [*self._first]
        self._rows = {name: row for row, name in enumerate(self.names)}
        self._records, self._successors = {}, {}
        self._popularity = np.zeros(len(self.names) + len(before) + 1024)
        self._landmark_ms = self._popular = None
        for name, raw in before:
            row, head = self.row(name), head_of(raw)
            self._records[row] = raw
            self._set_clicks(row, head.clicks, head.as_of_ms)
