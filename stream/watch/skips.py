"""Batches that librdkafka cannot read, in any of the topics: found, and where they end."""

from collections.abc import Callable, Collection, Iterator, Mapping

from stream.transport.unreadable import Watch, decode_statistics

BatchAt = Callable[[str, int, int], range | None]
"""(topic, partition, offset) -> the offsets of the batch that is fetched there. Blocks."""


class Skips:
    """Sees where a consumer stands still; ``partitions``: what it reads, by topic."""

    def __init__(self, partitions: Mapping[str, Collection[int]], batch_at: BatchAt) -> None:
        self._partitions = partitions
        self._batch_at = batch_at
        self._watches = {topic: Watch(topic) for topic in partitions}
        self._stuck: dict[tuple[str, int], int] = {}
        self._looked: dict[tuple[str, int], range | None] = {}

    def on_statistics(self, text: str) -> None:
        """librdkafka's callback."""
        statistics = decode_statistics(text)
        for topic, watch in self._watches.items():
            for partition, offset in watch.stuck(statistics, self._partitions[topic]).items():
                self._stuck[topic, partition] = offset

    def found(self) -> Iterator[tuple[str, int, range]]:
        """Yield topic, partition and offsets of the batches to go on behind.

        Only for a consumer that has handed over all that it has fetched. A batch is looked at when
        its partition has stood still for a round, and yielded after a second one.
        """
        while self._stuck:
            place, offset = self._stuck.popitem()
            batch = self._looked.get(place)
            if batch and offset in batch:
                yield *place, batch
            else:
                self._looked[place] = self._batch_at(*place, offset)
