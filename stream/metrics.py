"""Every metric the worker exports, in base units, with closed label sets.

Counters and histograms can be added up over workers; that is why live quality is kept as counters
of hits and reciprocal ranks and never as a ratio (Prometheus divides).
Faust's own sensors stay off: they are in milliseconds and cost 40 us a click.
"""

from collections import Counter as Tally
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from stream.contract.click import Reason
from stream.contract.messages import Outcome
from stream.counts import PARTS, QUALITY_K, BatchCounts, Quality
from stream.live.global_view import GlobalView
from stream.live.rules import SOURCES
from stream.transport.protocol import Restored

# Around the objective of 12 ms at the median and 30 ms at p99: steps of about a third there,
# doubling outside, so that a quantile read from the buckets is never off by more than that.
LATENCY_BUCKETS = (
    *(0.001, 0.002, 0.004, 0.006, 0.008, 0.010, 0.012, 0.016, 0.020, 0.025, 0.030, 0.040),
    *(0.060, 0.100, 0.200, 0.500, 1.0, 2.0, 5.0, 15.0, 60.0),
)
STAGE_BUCKETS = (
    *(0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.010, 0.015, 0.020, 0.030),
    *(0.050, 0.100, 0.250, 1.0),
)
TIMINGS = ("in_order", "late")
_NOT_TAUGHT = (Outcome.DUPLICATE, Outcome.OTHER_EVENT)
"""Clicks that no view will know of."""
RESTORE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class EngineMetrics:
    """What a worker exports whatever its records mean; a test brings its own registry.

    prefix: of every name. records_name, states_name: what the topic holds, and what is kept.
    """

    def __init__(
        self, registry: CollectorRegistry, prefix: str, records_name: str, states_name: str
    ) -> None:
        self.registry = registry
        self.states_name = states_name

        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.rejected = counter(
            f"{prefix}_rejected_{records_name}_total",
            f"Bad {records_name} sent to the dead-letter topic, by reason.",
            ["reason"],
        )
        self.skipped = counter(
            f"{prefix}_skipped_{records_name}_total",
            f"Redelivered {records_name} below the position: already applied, so skipped.",
        )
        self.holes = counter(
            f"{prefix}_offset_holes_total",
            f"Offsets that hold none of the {records_name} (transaction markers, aborted or "
            "compacted records).",
        )
        self.lost = counter(
            f"{prefix}_lost_{records_name}_total",
            f"{records_name.capitalize()} that retention removed before they were processed.",
        )
        self.stage = histogram(
            f"{prefix}_stage_seconds",
            "Wall time of one micro-batch by stage: plan, score (and encode the states), finish "
            "(its answers), apply (the states to those in memory), deliver.",
            ["stage"],
            buckets=STAGE_BUCKETS,
        )
        self.batch_size = histogram(
            f"{prefix}_batch_{records_name}",
            f"{records_name.capitalize()} in one micro-batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )
        self.states = gauge(
            f"{prefix}_live_{states_name}",
            f"{states_name.capitalize()} held, by partition.",
            ["partition"],
        )
        self.rebalances = counter(
            f"{prefix}_rebalances_total",
            "Restores: of partitions that the group assigns, of all after a lost transaction.",
        )
        self.restore = histogram(
            f"{prefix}_restore_seconds",
            "Wall time of a restore: settling with former owners, reading the changelog, claiming.",
            buckets=RESTORE_BUCKETS,
        )
        self.lost_transactions = counter(
            f"{prefix}_lost_transactions_total",
            "Transactions that failed or whose outcome is unknown: each is followed by a restore.",
        )
        self.restored = counter(
            f"{prefix}_restored_records_total", "Changelog records read by restores."
        )
        self.lag = gauge(
            f"{prefix}_consumer_lag_{records_name}",
            f"{records_name.capitalize()} appended and not yet processed, by partition.",
            ["partition"],
        )
        self.paused = gauge(
            f"{prefix}_paused_partition",
            "1 while a partition is paused at a record that cannot be processed, else 0.",
            ["partition"],
        )
        self.ready = gauge(
            f"{prefix}_ready",
            "1 when a member of the group with all its partitions restored, else 0.",
        )
        begin_at_zero(self.rejected, Reason)
        begin_at_zero(self.stage, ("plan", "score", "finish", "apply", "deliver"))

    def count_batch(self, counts: BatchCounts, committed_ms: int) -> None:
        """Count a committed micro-batch."""
        self.batch_size.observe(len(counts.answered) + len(counts.rejected))
        for _, reason in counts.rejected:
            self.rejected.labels(reason).inc()
        self.skipped.inc(counts.skipped)

    def look(self) -> None:
        """Set what changes between batches, too."""

    def count_restore(self, states_by_partition: Mapping[int, int], restored: Restored) -> None:
        """Count an assignment and its restore; partitions that left no longer have gauges."""
        self.rebalances.inc()
        self.restored.inc(restored.n_records)
        self.lost.inc(restored.n_lost)
        self.restore.observe(restored.seconds)
        self.set_by_partition(states_by_partition, {}, ())

    def set_by_partition(
        self, states: Mapping[int, int], lag: Mapping[int, int], paused: Collection[int]
    ) -> None:
        """Set the gauges of the owned partitions; those that left have none."""
        is_paused = {partition: partition in paused for partition in states}
        gauges = ((self.states, states), (self.lag, lag), (self.paused, is_paused))
        for gauge, values in gauges:
            gauge.clear()
            for partition, value in values.items():
                gauge.labels(partition).set(value)


def begin_at_zero(instrument: Counter | Histogram, labels: Iterable[str]) -> None:
    """Begin every series of a closed label: Prometheus' rate() misses a first step."""
    for label in labels:
        instrument.labels(label)


class Metrics(EngineMetrics):
    """The instruments of a worker that answers clicks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, "recs", "clicks", "sessions")

        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.clicks = counter(
            "recs_clicks_total",
            f"Good clicks answered, by outcome: {', '.join(Outcome)}.",
            ["outcome"],
        )
        self.late = counter(
            "recs_late_clicks_total", "Good clicks older than their session's last click."
        )
        self.stale = counter(
            "recs_stale_clicks_total",
            "Good clicks that are older than their partition's watermark by more than the idle "
            "timeout and the allowed lateness.",
        )
        self.published = counter(
            "recs_recommendations_total",
            "Recommendations committed, by model (bundle id) and outcome.",
            ["model", "outcome"],
        )
        self.latency = histogram(
            "recs_latency_seconds",
            "From the click's append to the broker to the commit of its recommendation.",
            buckets=LATENCY_BUCKETS,
        )
        self.event_latency = histogram(
            "recs_event_latency_seconds",
            "From the click's own timestamp to the commit of its recommendation.",
            buckets=LATENCY_BUCKETS,
        )
        self.inference = histogram(
            "recs_inference_seconds",
            "Wall time of the model on one micro-batch, by graph: encode (all waves), rank.",
            ["graph"],
            buckets=STAGE_BUCKETS,
        )
        self.begun = counter(
            "recs_begun_sessions_total",
            "Sessions begun: by their first click, or by the first after their idle timeout.",
        )
        self.expired = counter(
            "recs_expired_sessions_total", "Sessions removed after their idle timeout."
        )
        self.rebuilt = counter(
            "recs_rebuilt_sessions_total",
            "Sessions whose model state was rebuilt from the trail under a new bundle.",
        )
        self.no_scores = counter(
            "recs_lists_without_scores_total",
            "Lists with a score that is NaN or infinite: popular items were published instead.",
        )
        self.bundle = Info(
            "recs_bundle",
            "The bundle in service: bundle_id, architecture, and by seen_items whether the items "
            "of a session are in its lists: allow, exclude, exclude-last.",
            registry=registry,
        )
        self.live_predictions = counter(
            "recs_live_predictions_total",
            "Lists judged by the session's next click, by timing: in_order, late.",
            ["timing"],
        )
        self.live_hits = counter(
            "recs_live_hits_total",
            f"Judged lists with the next click among the first {QUALITY_K}, by timing.",
            ["timing"],
        )
        self.live_reciprocal_rank = counter(
            "recs_live_reciprocal_rank_total",
            f"Sum of 1/rank of the next click within the first {QUALITY_K}, by timing.",
            ["timing"],
        )
        self.part_predictions = counter(
            "recs_part_predictions_total",
            "Blended lists of a sample of sessions, judged in parts by the session's next click, "
            f"unless it is late: {', '.join(PARTS)}.",
            ["part"],
        )
        self.part_hits = counter(
            "recs_part_hits_total",
            f"Of these, the lists with the next click among the part's first {QUALITY_K}.",
            ["part"],
        )
        self.part_reciprocal_rank = counter(
            "recs_part_reciprocal_rank_total",
            f"Sum of 1/rank of the next click within the part's first {QUALITY_K}.",
            ["part"],
        )
        self.unknown_items = counter(
            "recs_unknown_item_clicks_total",
            "Good clicks on items that the network does not know; repeated events are left out.",
        )
        self.listed = counter(
            "recs_listed_items_total",
            "Items of blended lists, by the source that gave most of their score.",
            ["source"],
        )
        self.source_hits = counter(
            "recs_source_hits_total",
            "Hits of blended lists (recs_live_hits_total), by the source that brought the item.",
            ["source"],
        )
        self.view_items = gauge(
            "recs_view_items", "Items clicked lately, as far as this worker's view knows."
        )
        self.view_age = gauge(
            "recs_view_age_seconds",
            "How far the newest click that the view knows of is behind the newest one answered, by "
            "the clicks' own timestamps; below 0 where it is ahead.",
        )
        self.unreadable_view = counter(
            "recs_unreadable_view_records_total",
            "Records of the item-view topic that hold no counts of an item: passed over.",
        )
        self.view: GlobalView | None = None
        """What lists are blended with; whoever has one sets it."""
        self._n_unreadable = 0
        self._first_ms: int | None = None
        self._newest_ms = 0
        begin_at_zero(self.clicks, Outcome)
        for quality in (self.part_predictions, self.part_hits, self.part_reciprocal_rank):
            begin_at_zero(quality, PARTS)
        begin_at_zero(self.listed, SOURCES)
        begin_at_zero(self.source_hits, SOURCES)
        for quality in (self.live_predictions, self.live_hits, self.live_reciprocal_rank):
            begin_at_zero(quality, TIMINGS)
        begin_at_zero(self.inference, ("encode", "rank"))

    def count_batch(self, counts: BatchCounts, committed_ms: int) -> None:
        """Count a committed micro-batch."""
        super().count_batch(counts, committed_ms)
        self.inference.labels("encode").observe(counts.encode_seconds)
        self.inference.labels("rank").observe(counts.rank_seconds)
        answers = Tally((a.model_id, a.outcome) for a in counts.answered)
        for (model_id, outcome), n_clicks in answers.items():
            self.clicks.labels(outcome).inc(n_clicks)
            self.published.labels(model_id, outcome).inc(n_clicks)
        for record, timestamp_ms, *_ in counts.answered:
            self.latency.observe(max(0, committed_ms - record.timestamp_ms) / 1000)
            self.event_latency.observe(max(0, committed_ms - timestamp_ms) / 1000)
        of_timing = (self.live_predictions, self.live_hits, self.live_reciprocal_rank)
        for late, timing in enumerate(TIMINGS):
            _judge(of_timing, timing, (j.rank for j in counts.judgements if j.late == late))
        if counts.parts:
            of_part = (self.part_predictions, self.part_hits, self.part_reciprocal_rank)
            for part, ranks in zip(PARTS, zip(*counts.parts, strict=True), strict=True):
                _judge(of_part, part, ranks)
        for counter, by_source in ((self.listed, counts.listed), (self.source_hits, counts.hits)):
            for source, n in by_source.items():
                counter.labels(source).inc(n)
        self.unknown_items.inc(counts.unknown)
        if times_ms := [a.timestamp_ms for a in counts.answered if a.outcome not in _NOT_TAUGHT]:
            if self._first_ms is None:
                self._first_ms = min(times_ms)
            self._newest_ms = max(self._newest_ms, *times_ms)
        self.late.inc(counts.late)
        self.stale.inc(counts.stale)
        self.rebuilt.inc(counts.rebuilt)
        self.begun.inc(counts.begun)
        self.expired.inc(counts.expired)
        self.no_scores.inc(counts.no_scores)

    def look(self) -> None:
        """Set what the view is like now; it goes on while no clicks come."""
        view = self.view
        if view is None:
            return
        self.view_items.set(len(view))
        self.unreadable_view.inc(view.n_unreadable - self._n_unreadable)
        self._n_unreadable = view.n_unreadable
        if self._first_ms is not None:
            # A view that knows of nothing grows old from the first click on.
            known_ms = self._first_ms if view.as_of_ms is None else view.as_of_ms
            self.view_age.set((self._newest_ms - known_ms) / 1000)


def _judge(counters: Sequence[Counter], label: str, ranks: Iterable[int]) -> None:
    """Count judged lists: predictions, hits and reciprocal ranks."""
    quality = Quality()
    for rank in ranks:
        quality.add(rank)
    counted = (quality.predictions, quality.hits, quality.reciprocal_rank)
    for counter, value in zip(counters, counted, strict=True):
        counter.labels(label).inc(value)


class ItemMetrics(EngineMetrics):
    """The instruments of the item processor."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry, "items", "records", "items")
        self.events = Counter(
            "items_events_total",
            "Events counted: clicks on items, and steps from one item to another.",
            registry=registry,
        )
        self.forgotten = Counter(
            "items_forgotten_total",
            "Items of which next to nothing was left, and that every view drops.",
            registry=registry,
        )
        self.published = Counter(
            "items_published_total",
            "Items whose changed counts were sent to every view.",
            registry=registry,
        )
        self.latency = Histogram(
            "items_latency_seconds",
            "From the append of a record of events to the commit of what they changed.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )

    def count_batch(self, counts: BatchCounts, committed_ms: int) -> None:
        """Count a committed micro-batch."""
        super().count_batch(counts, committed_ms)
        self.events.inc(counts.events)
        self.published.inc(counts.published)
        self.forgotten.inc(counts.expired)
        for answered in counts.answered:
            self.latency.observe(max(0, committed_ms - answered.record.timestamp_ms) / 1000)
