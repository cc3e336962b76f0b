"""The second processor: counts, item by item, how often it was clicked and what came after it.

Pure and synchronous, as ``stream/batch.py``. Its records are what workers publish in the
transactions of their answers, so that every accepted click is counted once. What has changed enough
goes to the item-view topic, which every worker reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import msgspec

from stream.contract.click import MAX_FUTURE_MS
from stream.contract.decoders import BadClick, Reason
from stream.contract.items import EVENTS_FORMAT, ItemEvents, decode_events, forget_at_ms, head_of
from stream.contract.messages import Target
from stream.contract.records import Message, Record
from stream.counts import Answered
from stream.errors import NEWEST_FORMAT, NewerFormatError, StreamError
from stream.intake import Intake, Lookup, Taken
from stream.live.counts import ItemCounts
from stream.live.rules import DISTANCES, Rules
from stream.position import BadClickLimit, Position
from stream.table import PartitionStates


class EventsParser:
    """Reads records of the item-events topic; ``largest_step``: the most that a step may be."""

    def __init__(self, largest_step: int) -> None:
        self._steps = frozenset(range(-largest_step, largest_step + 1))

    def __call__(self, record: Record) -> ItemEvents | BadClick:
        if record.trouble:
            return BadClick(Reason.UNREADABLE, record.trouble)
        if record.value is None:
            return BadClick(Reason.NULL_VALUE, "the record has no value")
        try:
            events = decode_events(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return BadClick(Reason.BAD_FIELD, f"not the events of items: {error}")
        columns = (events.item, events.other, events.step, events.timestamp_ms)
        sizes = sorted({len(column) for column in columns})
        latest_ms = record.timestamp_ms + MAX_FUTURE_MS
        if events.format != EVENTS_FORMAT:
            wrong = f"format {events.format}, expected {EVENTS_FORMAT}"
        elif len(sizes) > 1:
            wrong = f"columns of {sizes[0]} to {sizes[-1]} events, expected as many in each"
        elif not self._steps.issuperset(events.step):
            wrong = f"a step that is none of {sorted(self._steps)}"
        elif not all(chain(events.item, events.other)):
            wrong = "an item_id that is empty"
        elif not all(0 < at_ms <= latest_ms for at_ms in events.timestamp_ms):
            wrong = f"a timestamp_ms that is not from 1 to {latest_ms}"
        else:
            return events
        return BadClick(Reason.BAD_FIELD, f"the events of items have {wrong}")


def _as_of_today(raw: bytes) -> bytes:
    try:
        head_of(raw)
    except ValueError as error:
        is_newer = raw and raw[0] <= NEWEST_FORMAT
        raise (NewerFormatError if is_newer else StreamError)(str(error)) from error
    return raw


class PartitionItems(PartitionStates):
    """The items of one partition; one expires when next to nothing is left of its counts."""

    as_of_today = staticmethod(_as_of_today)
    last_ms = staticmethod(forget_at_ms)


@dataclass(slots=True)
class ItemPlan(Taken):
    """A batch of item events, counted."""

    items: dict[tuple[int, bytes], ItemCounts] = field(default_factory=dict)


class ItemPlanner:
    """Counts batches of one item-events topic; keeps no item between them."""

    def __init__(self, rules: Rules, topic: str, limit: BadClickLimit) -> None:
        self.intake: Intake[ItemEvents] = Intake(topic, EventsParser(len(DISTANCES)), limit)
        self._rules = rules

    def new_partition(self) -> PartitionItems:
        """Return an empty table."""
        return PartitionItems()

    def refresh(self) -> None:
        """Nothing comes from elsewhere."""

    def plan(
        self,
        records: Mapping[int, Sequence[Record]],
        positions: Mapping[int, Position],
        lookup: Lookup,
    ) -> ItemPlan:
        """Return the counts after one micro-batch. Arguments and errors as in ``Intake.take``."""
        plan = ItemPlan(lookup)
        for record, events, position in self.intake.take(plan, records, positions):
            partition = record.partition
            touched = plan.touched[partition]
            for item, other, step, at_ms in zip(
                events.item, events.other, events.step, events.timestamp_ms, strict=True
            ):
                key = item.encode()
                counts = plan.items.get((partition, key))
                if counts is None:
                    touched.add(key)
                    raw = lookup(partition, key)
                    counts = plan.items[partition, key] = (
                        ItemCounts(self._rules, at_ms)
                        if raw is None
                        else ItemCounts.decode(self._rules, raw)
                    )
                counts.count(other, step, at_ms)
            latest_ms = max(events.timestamp_ms, default=0)
            position.watermark_ms = max(position.watermark_ms, latest_ms)
            plan.counts.events += len(events.item)
            plan.counts.answered.append(Answered(record, latest_ms, "", "counted"))
        return plan

    def score(self, plan: ItemPlan) -> None:
        """There is no model to run."""

    def advance(self, plan: ItemPlan) -> None:
        """Complete the plan's changelog, and what it publishes."""
        transaction = plan.transaction
        view = transaction.messages[Target.ITEM_VIEW]
        for (partition, key), counts in plan.items.items():
            due = counts.is_due()
            raw = transaction.changelog[partition][key] = counts.encode()
            if due:
                view[partition].append(Message(key, raw))
                plan.counts.published += 1

    def answer(self, plan: ItemPlan, published_ms: int) -> None:
        """Nothing is answered."""

    def is_dead(self, forget_at_ms: int, watermark_ms: int) -> bool:
        """Whether the log has come to where an item is forgotten."""
        return watermark_ms > forget_at_ms

    def expire(self, plan: ItemPlan, partition: int, keys: Sequence[bytes]) -> None:
        """Let the batch's transaction forget items, here and in every view."""
        plan.transaction.changelog[partition].update(dict.fromkeys(keys))
        plan.transaction.messages[Target.ITEM_VIEW][partition] += [Message(k, None) for k in keys]
        plan.counts.expired += len(keys)
