"""A model with known scores, and a worker without Kafka: what the laws of a batch are tried on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int32, Int64

from stream.batch import Plan, Planner, Rules
from stream.contract.context import ContextField
from stream.contract.messages import Target
from stream.contract.records import Message, Record
from stream.model.bundle import Bundle, Manifest, Parity, PopularItem, TrainingData
from stream.model.models import Model, Models
from stream.model.scorer import Scorer
from stream.position import Position, decode_position, encode_position
from stream.session import PartitionSessions
from stream.table import PartitionStates, States

TOPIC = "clicks"
PUBLISHED_MS = 77
BEGIN_MS = 2800 * 7 * 86_400_000
"""The clicks' times are counted from here: whole weeks since 1970, in 2023."""
RECORD_MS = BEGIN_MS + 10_000_000
"""Every record's own timestamp, so that a click's may be anything a test needs."""


class FakeScorer:
    """A state of two numbers, the query's one ahead by 1. A list is made of a row of ``scores``.

    ``memory`` 0: the row of the clicked item. Above 0 earlier clicks choose the row as well, and
    ``context_weight`` lets the context fields do so, so that a list tells whether all clicks have
    been taken with their context, once each and in order.
    """

    state_size = 2
    query_size = 1

    def __init__(
        self,
        scores: np.ndarray,
        n_candidates: int,
        memory: float = 0.0,
        context_weight: float = 0.0,
    ) -> None:
        self.scores = scores.astype(np.float32)
        self.n_candidates = n_candidates
        self.memory = np.float32(memory)
        self.context_weight = context_weight

    def encode(
        self,
        item_index: Int64[np.ndarray, "B"],
        context: Int32[np.ndarray, "B F"],
        state: Float32[np.ndarray, "B S"],
    ) -> tuple[Float32[np.ndarray, "B D"], Float32[np.ndarray, "B S"]]:
        said = item_index + self.context_weight * (context @ np.arange(1, context.shape[1] + 1))
        last = self.memory * state[:, 1] + said.astype(np.float32)
        # What was before the last click stays as well: it is the model's own affair.
        return last[:, None] + 1, np.stack([state[:, 1], last], axis=1)

    def rank(
        self, query: Float32[np.ndarray, "B D"], bias: Float32[np.ndarray, "N"] | None = None
    ) -> tuple[Int32[np.ndarray, "B K"], Float32[np.ndarray, "B K"]]:
        scores = self.scores[(query[:, 0] - 1).astype(int) % len(self.scores)]
        if bias is not None:
            scores = scores + bias
        top_index = np.argsort(-scores, axis=1, kind="stable")[:, : self.n_candidates]
        return top_index.astype(np.int32), np.take_along_axis(scores, top_index, axis=1)


def bundle_of(
    item_ids: Sequence[str],
    n_recommendations: int,
    bundle_id: str = "a" * 16,
    idle_timeout_s: int | None = None,
    context: Sequence[ContextField] = (),
    event_types: tuple[str, ...] = (),
) -> Bundle:
    """A bundle without files; the popular items are the first ones."""
    manifest = Manifest(
        bundle_id=bundle_id,
        architecture="fake",
        hidden_size=1,
        n_layers=1,
        state_size=FakeScorer.state_size,
        query_size=FakeScorer.query_size,
        n_items=len(item_ids),
        n_recommendations=n_recommendations,
        idle_timeout_s=idle_timeout_s,
        context=list(context),
        event_types=event_types,
        opset=20,
        training=TrainingData(0, 0, 0, 0, 0),
        metrics=None,
        parity=Parity(0, 0, 0.0, 0.0, 0),
        popular=[PopularItem(i, float(-i)) for i in range(n_recommendations)],
    )
    index = {item_id: i for i, item_id in enumerate(item_ids)}
    return Bundle(manifest, list(item_ids), index, bytes, bytes)


@dataclass
class Replay:
    """Applies batch after batch as a worker does after each commit, and keeps what they said.

    The positions go through their bytes in between, as in a restart after every batch.
    """

    bundle: Bundle
    scorer: Scorer
    rules: Rules
    collect: bool = False
    sessions: States = field(default_factory=States)
    positions: dict[int, Position] = field(default_factory=dict)
    messages: dict[int, list[Message]] = field(default_factory=dict)
    outputs: list[Plan] = field(default_factory=list)
    collected: int = 0

    def run(self, batches: Iterable[Sequence[Record]]) -> "Replay":
        """Take the batches, one after the other; returns itself."""
        for batch in batches:
            self.step(batch)
        return self

    def step(self, batch: Sequence[Record]) -> Plan:
        """Take one batch."""
        records: dict[int, list[Record]] = {}
        for record in batch:
            records.setdefault(record.partition, []).append(record)
        new = records.keys() - self.sessions.partitions.keys()
        self.sessions.own({p: PartitionSessions() for p in new})
        positions = {p: self.positions.get(p) or Position(0, "topic") for p in records}
        planner = Planner(Models(Model(self.bundle, self.scorer)), self.rules, TOPIC)
        plan = planner.plan(records, positions, self.sessions.get)
        planner.score(plan)
        transaction = plan.transaction
        planner.advance(plan)
        for p, position in transaction.positions.items():
            dead = self._dead(p, plan) if self.collect else []
            self.collected += len(dead)
            transaction.changelog[p].update(dict.fromkeys(dead))
            self.positions[p] = decode_position(encode_position(position))
        self.sessions.apply(transaction)
        # Behind the states, as a worker does: the answers depend on nothing that comes later.
        planner.answer(plan, PUBLISHED_MS)
        for p in transaction.positions:
            for target in Target:
                self.messages.setdefault(p, []).extend(transaction.messages[target][p])
        self.outputs.append(plan)
        return plan

    def _dead(self, partition: int, plan: Plan) -> list[bytes]:
        watermark_ms = plan.transaction.positions[partition].watermark_ms

        def is_dead(seen_ms: int) -> bool:
            return self.rules.is_dead(seen_ms, watermark_ms)

        return self.partition(partition).collect(is_dead, plan.touched[partition], 100)

    def partition(self, partition: int) -> PartitionStates:
        return self.sessions.partitions[partition]
