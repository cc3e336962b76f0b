"""One Kafka transaction per partition and micro-batch, by one producer per owned partition.

The transactional id belongs to the input partition: whoever starts it next fences the owner
before, so a worker that was paused or replaced cannot write behind its successor.
"""

import asyncio
from collections.abc import Collection, Iterable
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import InvalidProducerEpoch, ProducerFenced

from stream.contract.records import Message
from stream.position import POSITION_KEY, encode_position
from stream.settings import KafkaSettings
from stream.transport.clients import aiokafka_options
from stream.transport.protocol import Target, Transaction, TransactionLostError
from stream.transport.topics import BATCH_BYTES, TopicFacts, hanging_partitions

log = structlog.get_logger(__name__)

TRANSACTION_TIMEOUT_MS = 15_000
MIN_REQUEST_BYTES = 4_000_000
_NOTHING = b"\x00aborted"
"""Key of a record that is written to be aborted."""


# The broker's two errors for it, and what aiokafka raises at any later call on that producer.
_FENCED = (ProducerFenced, InvalidProducerEpoch, AssertionError)


class Delivery:
    """The producers of the owned partitions."""

    def __init__(self, settings: KafkaSettings, facts: TopicFacts) -> None:
        self._settings = settings
        self._facts = facts
        self._producers: dict[int, AIOKafkaProducer] = {}

    async def own(self, partitions: Collection[int]) -> list[int]:
        """Start a producer for each partition: fences its last owner and aborts what that left.

        Returns the partitions of which a transaction was aborted that somebody may have been told
        is committed: forget what was applied of them, and read their changelog again.

        The producers of before are stopped first, those of partitions that stay included: after
        a rebalance nobody knows who else has started their ids. The caller is between batches.
        """
        await self.close()
        producers = {p: self._new_producer(p) for p in partitions}
        self._producers = producers  # so that close() reaches them if a start is cancelled
        await asyncio.gather(*(producer.start() for producer in producers.values()))
        return await self._abort_what_hangs(partitions) if partitions else []

    async def _abort_what_hangs(self, partitions: Collection[int]) -> list[int]:
        """Abort transactions whose end the brokers have lost, before the next one commits them.

        Kafka 4.4 calls a transaction complete without writing its markers to a partition that has
        no leader at that moment: its one broker is shutting down. The records then hang in the
        log, hidden from the restore, until the next transaction of the same id ends; were that a
        commit, clicks answered again would be answered twice. Nobody has read them, all of the
        transaction's partitions hang alike, and so an abort in all of them undoes it whole.
        """
        changelog = self._settings.changelog_topic
        hanging = await asyncio.to_thread(hanging_partitions, self._settings, changelog, partitions)
        for partition in hanging:
            log.warning("hanging_transaction_aborted", topic=changelog, partition=partition)
            producer = self._producers[partition]
            await producer.begin_transaction()
            for topic, to in self._topics(partition):
                await producer.send_and_wait(topic, key=_NOTHING, value=None, partition=to)
            await producer.abort_transaction()
        return hanging

    def _topics(self, partition: int) -> tuple[tuple[str, int], ...]:
        """Where recommendations, dead letters and changelog of an input partition go."""
        settings, facts = self._settings, self._facts
        return (
            (settings.recommendations_topic, partition % facts.recommendation_partitions),
            (settings.dead_letter_topic, partition % facts.dead_letter_partitions),
            (settings.changelog_topic, partition),
        )

    def _new_producer(self, partition: int) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            **aiokafka_options(self._settings),
            transactional_id=f"{self._settings.app_id}-{partition}",
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            retry_backoff_ms=10,
            acks="all",
            max_batch_size=BATCH_BYTES,
            # A dead letter is as large as its click: the producer must take what the topic takes.
            max_request_size=max(MIN_REQUEST_BYTES, self._facts.dead_letter_bytes + 65_536),
        )

    async def commit(self, transaction: Transaction) -> dict[int, int]:
        """Commit a batch, one Kafka transaction for each of its partitions, all at once.

        Returns the offset, by partition, that the last batch in the changelog begins at: a
        restore need not read again what lies below. Raises TransactionLostError, or a send's own
        error after the abort of its partition.
        """
        partitions = transaction.positions
        offsets = await asyncio.gather(*(self._commit(p, transaction) for p in partitions))
        return dict(zip(partitions, offsets, strict=True))

    async def _commit(self, partition: int, transaction: Transaction) -> int:
        producer = self._producers[partition]
        changelog = [Message(k, value) for k, value in transaction.changelog[partition].items()]
        position = encode_position(transaction.positions[partition])
        changelog.append(Message(POSITION_KEY, position))
        try:
            await producer.begin_transaction()
            futures = []
            messages = [transaction.messages[target][partition] for target in Target]
            for to, of_topic in zip(self._topics(partition), [*messages, changelog], strict=True):
                futures += await _send(producer, *to, of_topic)
            # commit_transaction() would succeed with the rest when one batch has failed.
            sent = await asyncio.gather(*futures)
        except _FENCED as error:
            raise TransactionLostError(f"partition {partition} was taken over: {error}") from error
        except Exception:
            await producer.abort_transaction()
            raise
        try:
            await producer.commit_transaction()
        except Exception as error:
            raise TransactionLostError(
                f"outcome of the commit in partition {partition} is unknown: {error!r}"
            ) from error
        return int(sent[-1].offset)

    async def close(self) -> None:
        """Stop all producers. An open transaction is aborted by whoever starts its id next."""
        producers, self._producers = self._producers, {}
        await asyncio.gather(*(p.stop() for p in producers.values()), return_exceptions=True)


async def _send(
    producer: AIOKafkaProducer, topic: str, partition: int, messages: Iterable[Message]
) -> list[asyncio.Future[Any]]:
    """Hand over messages as few ready-made batches; a call a message costs 60 us each."""
    futures = []
    batch = None
    for message in messages:
        arguments = {
            "key": message.key,
            "value": message.value,
            "timestamp": None,
            "headers": list(message.headers),
        }
        if batch is None or batch.append(**arguments) is None:
            if batch is not None:
                batch.close()
                futures.append(await producer.send_batch(batch, topic, partition=partition))
            batch = producer.create_batch()
            appended = batch.append(**arguments)
            assert appended is not None, "an empty batch takes any record"
    if batch is not None:
        batch.close()
        futures.append(await producer.send_batch(batch, topic, partition=partition))
    return futures
