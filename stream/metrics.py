"""Every metric the worker exports, in base units, with closed label sets.

Counters and histograms can be added up over workers; that is why live quality is kept as counters
of hits and reciprocal ranks and never as a ratio (Prometheus divides).
Faust's own sensors stay off: they are in milliseconds and cost 40 us a click.
"""

from collections import Counter as Tally
from collections.abc import Collection, Iterable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from stream.contract.click import Reason
from stream.contract.messages import Outcome
from stream.counts import QUALITY_K, BatchCounts, Quality
from stream.model.scorer import Scores
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
RESTORE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The worker's instruments on one registry; a test brings its own registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.clicks = counter(
            "recs_clicks_total",
            f"Good clicks answered, by outcome: {', '.join(Outcome)}.",
            ["outcome"],
        )
        self.rejected = counter(
            "recs_rejected_clicks_total",
            "Bad clicks sent to the dead-letter topic, by reason.",
            ["reason"],
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
        self.skipped = counter(
            "recs_skipped_clicks_total",
            "Redelivered clicks below the position: already applied, so skipped.",
        )
        self.holes = counter(
            "recs_offset_holes_total",
            "Offsets that hold no click (transaction markers, aborted or compacted records).",
        )
        self.lost = counter(
            "recs_lost_clicks_total", "Clicks that retention removed before they were processed."
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
        self.stage = histogram(
            "recs_stage_seconds",
            "Wall time of one micro-batch by stage: plan, score (and encode the states), finish "
            "(its answers), apply (the states to the sessions), deliver.",
            ["stage"],
            buckets=STAGE_BUCKETS,
        )
        self.inference = histogram(
            "recs_inference_seconds",
            "Wall time of the model on one micro-batch, by graph: encode (all waves), rank.",
            ["graph"],
            buckets=STAGE_BUCKETS,
        )
        self.batch_size = histogram(
            "recs_batch_clicks",
            "Clicks in one micro-batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )
        self.sessions = gauge("recs_live_sessions", "Sessions held, by partition.", ["partition"])
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
        self.rebalances = counter(
            "recs_rebalances_total",
            "Restores: of partitions that the group assigns, of all after a lost transaction.",
        )
        self.restore = histogram(
            "recs_restore_seconds",
            "Wall time of a restore: settling with former owners, reading the changelog, claiming.",
            buckets=RESTORE_BUCKETS,
        )
        self.lost_transactions = counter(
            "recs_lost_transactions_total",
            "Transactions that failed or whose outcome is unknown: each is followed by a restore.",
        )
        self.restored = counter(
            "recs_restored_records_total", "Changelog records read by restores."
        )
        self.lag = gauge(
            "recs_consumer_lag_clicks",
            "Clicks appended and not yet processed, by partition.",
            ["partition"],
        )
        self.paused = gauge(
            "recs_paused_partition",
            "1 while a partition is paused at a record that cannot be processed, else 0.",
            ["partition"],
        )
        self.ready = gauge(
            "recs_ready", "1 when a member of the group with all its partitions restored, else 0."
        )
        self.bundle = Info(
            "recs_bundle", "The bundle in service: bundle_id, architecture.", registry=registry
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
        # Begin every series with a closed label at 0: Prometheus' rate() misses a first step.
        closed: tuple[tuple[Counter | Histogram, Iterable[str]], ...] = (
            (self.clicks, Outcome),
            (self.rejected, Reason),
            (self.live_predictions, TIMINGS),
            (self.live_hits, TIMINGS),
            (self.live_reciprocal_rank, TIMINGS),
            (self.stage, ("plan", "score", "finish", "apply", "deliver")),
            (self.inference, ("encode", "rank")),
        )
        for instrument, labels in closed:
            for label in labels:
                instrument.labels(label)

    def count_batch(
        self, counts: BatchCounts, scores: Collection[Scores], committed_ms: int
    ) -> None:
        """Count a committed micro-batch; ``scores`` of each model that took part."""
        self.batch_size.observe(len(counts.answered) + len(counts.rejected))
        self.inference.labels("encode").observe(sum(s.encode_seconds for s in scores))
        self.inference.labels("rank").observe(sum(s.rank_seconds for s in scores))
        answers = Tally((a.model_id, a.outcome) for a in counts.answered)
        for (model_id, outcome), n_clicks in answers.items():
            self.clicks.labels(outcome).inc(n_clicks)
            self.published.labels(model_id, outcome).inc(n_clicks)
        for record, timestamp_ms, *_ in counts.answered:
            self.latency.observe(max(0, committed_ms - record.timestamp_ms) / 1000)
            self.event_latency.observe(max(0, committed_ms - timestamp_ms) / 1000)
        for _, reason in counts.rejected:
            self.rejected.labels(reason).inc()
        for late, timing in enumerate(TIMINGS):
            quality = Quality()
            for judgement in counts.judgements:
                if judgement.late == late:
                    quality.add(judgement.rank)
            self.live_predictions.labels(timing).inc(quality.predictions)
            self.live_hits.labels(timing).inc(quality.hits)
            self.live_reciprocal_rank.labels(timing).inc(quality.reciprocal_rank)
        self.skipped.inc(counts.skipped)
        self.late.inc(counts.late)
        self.stale.inc(counts.stale)
        self.rebuilt.inc(counts.rebuilt)
        self.begun.inc(counts.begun)
        self.expired.inc(counts.expired)
        self.no_scores.inc(counts.no_scores)

    def count_restore(self, sessions_by_partition: Mapping[int, int], restored: Restored) -> None:
        """Count an assignment and its restore; partitions that left no longer have gauges."""
        self.rebalances.inc()
        self.restored.inc(restored.n_records)
        self.lost.inc(restored.n_lost)
        self.restore.observe(restored.seconds)
        self.set_by_partition(sessions_by_partition, {}, ())

    def set_by_partition(
        self, sessions: Mapping[int, int], lag: Mapping[int, int], paused: Collection[int]
    ) -> None:
        """Set the gauges of the owned partitions; those that left have none."""
        is_paused = {partition: partition in paused for partition in sessions}
        gauges = ((self.sessions, sessions), (self.lag, lag), (self.paused, is_paused))
        for gauge, values in gauges:
            gauge.clear()
            for partition, value in values.items():
                gauge.labels(partition).set(value)
