"""Lists as they are published, stored and judged: a model's own, or blended ones."""

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Protocol, TypeVar

import numpy as np

from stream.contract.messages import encode_json, item_json
from stream.counts import Found, rank_in_list
from stream.live.lists import Listed, LiveList, decode_list, encode_list
from stream.live.rules import SOURCES
from stream.model.blender import Blender
from stream.model.scorer import Scores

T = TypeVar("T")

ListRef = int | bytes | None
"""A list: its number in this batch, the bytes of a session's state, or none (what is popular)."""


class Catalogue(Protocol):
    """What is needed of a ``Model``."""

    item_index: dict[str, int]
    item_json: list[bytes]
    popular_json: bytes


class Lists(Protocol):
    """The lists of one model in a batch, by their references."""

    def stored(self, listed: ListRef) -> bytes:
        """Return the bytes that a session's state keeps of a list; none of none."""
        ...

    def find(self, listed: int | bytes, item_id: str) -> Found:
        """Return an item's rank in a list, as ``rank_in_list``, and the source that brought it."""
        ...

    def items(self, listed: ListRef) -> bytes:
        """Return the JSON array of a list's items."""
        ...

    def is_popular(self, listed: ListRef, items: bytes) -> bool:
        """Whether a list that was made in this batch says no more than what is popular."""
        ...

    def sources(self) -> dict[str, int]:
        """Return how many items of the lists made in this batch came from each source."""
        ...


class NetworkLists:
    """Lists of a network alone."""

    def __init__(self, model: Catalogue, scores: Scores | None) -> None:
        self._model = model
        self._index: list[list[int]] = []
        self._score: list[list[float]] = []
        self._index_bytes = self._score_bytes = b""
        self._list_bytes = 0
        if scores:
            self._index, self._score = scores.top_index.tolist(), scores.top_score.tolist()
            self._index_bytes = scores.top_index.tobytes()
            self._score_bytes = scores.top_score.tobytes()
            self._list_bytes = 4 * scores.top_index.shape[1]

    def stored(self, listed: ListRef) -> bytes:
        """As ``Lists.stored``: int32 item indices, then float32 scores."""
        if isinstance(listed, int):
            here = slice(listed * self._list_bytes, (listed + 1) * self._list_bytes)
            return self._index_bytes[here] + self._score_bytes[here]
        return listed or b""

    def find(self, listed: int | bytes, item_id: str) -> Found:
        """As ``Lists.find``; a network alone names no source."""
        index = self._model.item_index.get(item_id, -1)
        return Found(rank_in_list(*self._pairs(listed), index))

    def items(self, listed: ListRef) -> bytes:
        """As ``Lists.items``; popular ones where a score is NaN or infinite."""
        if listed is None:
            return self._model.popular_json
        index, score = self._pairs(listed)
        scores = encode_json(score)[1:-1]
        if b"u" in scores:  # of null, its JSON
            return self._model.popular_json
        # Most of it is the same for every list: 6 us of the 12 that encoding item by item took.
        pieces, numbers = self._model.item_json, scores.split(b",")
        return b"[%b}]" % b"},".join([pieces[i] + n for i, n in zip(index, numbers, strict=True)])

    def is_popular(self, listed: ListRef, items: bytes) -> bool:
        """As ``Lists.is_popular``."""
        return items is self._model.popular_json

    def sources(self) -> dict[str, int]:
        """As ``Lists.sources``: a network alone names none."""
        return {}

    def _pairs(self, listed: int | bytes) -> tuple[list[int], list[float]]:
        """Item indices and scores, best first."""
        if isinstance(listed, int):
            return self._index[listed], self._score[listed]
        half = len(listed) // 2
        index, score = np.frombuffer(listed[:half], np.int32), listed[half:]
        return index.tolist(), np.frombuffer(score, np.float32).tolist()


class LiveLists:
    """Lists of a network and the view."""

    def __init__(self, model: Catalogue, blender: Blender, made: Sequence[Listed]) -> None:
        self._model = model
        self._blender = blender
        self._made = made
        self._popular: bytes | None = None

    def stored(self, listed: ListRef) -> bytes:
        """As ``Lists.stored``."""
        if not isinstance(listed, int):
            return listed or b""
        made, names = self._made[listed], self._blender.view.names
        items = [names[row] for row in made.items]
        scores = array("f", made.scores).tobytes()
        return encode_list(LiveList(items, scores, bytes(made.sources)))

    def find(self, listed: int | bytes, item_id: str) -> Found:
        """As ``Lists.find``."""
        if isinstance(listed, int):
            made, row = self._made[listed], self._blender.view.row(item_id)
            return _found(made.items, made.scores, made.sources, row)
        kept = decode_list(listed)
        scores = np.frombuffer(kept.scores, "<f4").tolist()
        return _found(kept.items, scores, kept.sources, item_id)

    def items(self, listed: ListRef) -> bytes:
        """As ``Lists.items``, each with the source that brought it."""
        if listed is None:
            if self._popular is None:
                popular = self._blender.popular()
                self._popular = self._json(popular) if popular else self._model.popular_json
            return self._popular
        if isinstance(listed, int):
            return self._json(self._made[listed])
        kept = decode_list(listed)
        scores = np.frombuffer(kept.scores, "<f4").tolist()
        return _json([*map(item_json, kept.items)], scores, kept.sources)

    def is_popular(self, listed: ListRef, items: bytes) -> bool:
        """As ``Lists.is_popular``."""
        return isinstance(listed, int) and not self._made[listed].is_of_neighbours

    def sources(self) -> dict[str, int]:
        """As ``Lists.sources``."""
        counts = Counter(chain.from_iterable(made.sources for made in self._made))
        return {SOURCES[number]: n for number, n in counts.items()}

    def _json(self, listed: Listed) -> bytes:
        known, names = self._model.item_json, self._blender.view.names
        n_known = len(known)
        pieces = [known[row] if row < n_known else item_json(names[row]) for row in listed.items]
        return _json(pieces, listed.scores, listed.sources)


def _found(items: Sequence[T], scores: Sequence[float], sources: Sequence[int], item: T) -> Found:
    rank = rank_in_list(items, scores, item)
    return Found(rank, SOURCES[sources[items.index(item)]] if rank else None)


_ENDS = [b',"source":"%b"}' % source.encode() for source in SOURCES]


def _json(pieces: Collection[bytes], scores: Sequence[float], sources: Iterable[int]) -> bytes:
    # Column by column, and one join: 4 us a list, and 5 item by item.
    parts = [b","] * (4 * len(pieces))
    parts[0::4] = pieces
    parts[1::4] = encode_json(scores)[1:-1].split(b",") if scores else ()
    parts[2::4] = map(_ENDS.__getitem__, sources)
    parts[-1:] = [b"]"]
    return b"[" + b"".join(parts)


def check_items(n_items: int, scores: Scores) -> None:
    """Raise IndexError where a list has an item that does not exist.

    Below 0 Python would count from the catalogue's end, and publish another item.
    """
    if scores.top_index.size:
        least, most = scores.top_index.min(), scores.top_index.max()
        if not 0 <= least <= most < n_items:
            raise IndexError(f"a list has item_index {least} to {most}, of {n_items} items")
