"""What a committed batch and a restore leave in the metrics, and that their labels are closed."""

from collections import Counter
from itertools import pairwise

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from stream.contract.click import Reason
from stream.contract.messages import Outcome
from stream.contract.records import Record
from stream.counts import Answered, BatchCounts, Judgement
from stream.live.counts import ItemCounts
from stream.live.global_view import GlobalView
from stream.live.rules import Rules
from stream.metrics import LATENCY_BUCKETS, RESTORE_BUCKETS, STAGE_BUCKETS, ItemMetrics, Metrics
from stream.transport.protocol import Restored

BUNDLE_ID = "a" * 16


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def answered(append_ms: int, timestamp_ms: int, outcome: Outcome) -> Answered:
    return Answered(Record(0, 0, append_ms, b"s", b""), timestamp_ms, BUNDLE_ID, outcome)


def test_a_committed_batch_is_counted(metrics: Metrics) -> None:
    counts = BatchCounts(
        answered=[
            answered(1000, 900, Outcome.MODEL),
            answered(1010, 1005, Outcome.MODEL),
            answered(1010, 2000, Outcome.DUPLICATE),  # its clock runs ahead of the broker's
            answered(1020, 1020, Outcome.MODEL),
        ],
        rejected=[(Record(0, 3, 1000, None, None), Reason.NULL_VALUE)],
        judgements=[
            Judgement(False, 1),
            Judgement(False, 4),
            Judgement(False, 0),
            Judgement(False, 21),  # of a bundle with more than 20 recommendations
            Judgement(True, 2),
        ],
        skipped=5,
        late=1,
        expired=5,
        rebuilt=3,
        no_scores=2,
        encode_seconds=0.002,
        rank_seconds=0.004,
    )
    metrics.count_batch(counts, 1020)

    assert value(metrics, "recs_clicks_total", outcome="model") == 3
    assert value(metrics, "recs_clicks_total", outcome="duplicate") == 1
    assert value(metrics, "recs_recommendations_total", model=BUNDLE_ID, outcome="model") == 3
    assert value(metrics, "recs_rejected_clicks_total", reason="null_value") == 1
    assert value(metrics, "recs_skipped_clicks_total") == 5
    assert value(metrics, "recs_late_clicks_total") == 1
    assert value(metrics, "recs_rebuilt_sessions_total") == 3
    assert value(metrics, "recs_expired_sessions_total") == 5
    assert value(metrics, "recs_lists_without_scores_total") == 2
    assert value(metrics, "recs_batch_clicks_sum") == 5
    assert value(metrics, "recs_batch_clicks_count") == 1
    # 20, 10, 10 and 0 ms after the append; 120, 15, 0 (never negative) and 0 after the event.
    assert value(metrics, "recs_latency_seconds_sum") == pytest.approx(0.040)
    assert value(metrics, "recs_latency_seconds_bucket", le="0.01") == 3
    assert value(metrics, "recs_event_latency_seconds_sum") == pytest.approx(0.135)
    assert value(metrics, "recs_inference_seconds_sum", graph="encode") == 0.002
    assert value(metrics, "recs_inference_seconds_sum", graph="rank") == 0.004


def test_live_quality_is_counted_at_20_and_late_clicks_apart(metrics: Metrics) -> None:
    judgements = [Judgement(False, rank) for rank in (1, 4, 20, 21, 0)] + [Judgement(True, 2)]
    metrics.count_batch(BatchCounts(judgements=judgements), 0)
    in_order, late = {"timing": "in_order"}, {"timing": "late"}
    assert value(metrics, "recs_live_predictions_total", **in_order) == 5
    assert value(metrics, "recs_live_hits_total", **in_order) == 3
    # 1/1 + 1/4 + 1/20
    assert value(metrics, "recs_live_reciprocal_rank_total", **in_order) == pytest.approx(1.3)
    assert value(metrics, "recs_live_predictions_total", **late) == 1
    assert value(metrics, "recs_live_reciprocal_rank_total", **late) == 0.5


def test_parts_are_counted_on_the_same_clicks_and_sources_by_name(metrics: Metrics) -> None:
    counts = BatchCounts(
        parts=[(1, 2, 0, 21), (20, 0, 4, 0)],
        listed=Counter(transitions=15, network=5),
        hits=Counter(network=2),
        unknown=3,
    )
    metrics.count_batch(counts, 0)
    expected = {"published": (2, 1.05), "network": (1, 0.5), "counts": (1, 0.25)}
    for part, (hits, reciprocal_rank) in (expected | {"popularity": (0, 0)}).items():
        assert value(metrics, "recs_part_predictions_total", part=part) == 2
        assert value(metrics, "recs_part_hits_total", part=part) == hits
        found = value(metrics, "recs_part_reciprocal_rank_total", part=part)
        assert found == pytest.approx(reciprocal_rank)
    assert value(metrics, "recs_listed_items_total", source="transitions") == 15
    assert value(metrics, "recs_listed_items_total", source="popularity") == 0
    assert value(metrics, "recs_source_hits_total", source="network") == 2
    assert value(metrics, "recs_unknown_item_clicks_total") == 3


def test_the_view_grows_old_as_clicks_go_on_and_may_be_ahead(metrics: Metrics) -> None:
    rules = Rules(3_600_000, 225_000, excludes_seen=False)
    metrics.look()
    assert value(metrics, "recs_view_items") == 0
    metrics.view = view = GlobalView(rules)
    metrics.look()
    assert value(metrics, "recs_view_age_seconds") == 0, "nothing to be behind of"
    for at_ms, age_s in ((1_000_000, 0), (1_060_000, 60), (1_030_000, 60)):
        metrics.count_batch(BatchCounts(answered=[answered(0, at_ms, Outcome.MODEL)]), 0)
        metrics.look()
        assert value(metrics, "recs_view_age_seconds") == age_s, "a view that knows of nothing"
    repeated = answered(0, 9_000_000, Outcome.DUPLICATE)
    metrics.count_batch(BatchCounts(answered=[repeated]), 0)
    for at_ms, age_s in ((1_050_000, 10), (1_080_000, -20)):
        view.take([(b"a", ItemCounts(rules, at_ms).encode())])
        metrics.look()
        assert value(metrics, "recs_view_age_seconds") == age_s
    assert value(metrics, "recs_view_items") == 1
    view.take([(b"b", b"no counts"), (b"\xff", None)])
    for _ in range(2):
        metrics.look()
        assert value(metrics, "recs_unreadable_view_records_total") == 2


def test_what_the_item_processor_has_done_is_counted() -> None:
    metrics = ItemMetrics(CollectorRegistry())
    counts = BatchCounts(
        answered=[answered(1000, 900, Outcome.MODEL)], events=7, published=3, expired=2
    )
    metrics.count_batch(counts, 1500)
    sample = metrics.registry.get_sample_value
    assert sample("items_events_total") == 7
    assert sample("items_published_total") == 3
    assert sample("items_forgotten_total") == 2
    assert sample("items_latency_seconds_sum") == 0.5


def test_a_partition_that_has_left_has_no_gauge_any_more(metrics: Metrics) -> None:
    metrics.count_restore({0: 10, 1: 20}, Restored(30, 7, 0.2))
    metrics.lag.labels(0).set(7)
    metrics.count_restore({1: 21}, Restored(1, 0, 0.1))
    assert value(metrics, "recs_live_sessions", partition="0") is None
    assert value(metrics, "recs_live_sessions", partition="1") == 21
    assert value(metrics, "recs_consumer_lag_clicks", partition="0") is None
    assert value(metrics, "recs_rebalances_total") == 2
    assert value(metrics, "recs_restored_records_total") == 31
    assert value(metrics, "recs_lost_clicks_total") == 7
    assert value(metrics, "recs_restore_seconds_sum") == pytest.approx(0.3)


@pytest.mark.parametrize(("kind", "prefix"), [(Metrics, "recs_"), (ItemMetrics, "items_")])
def test_names_are_ours_and_in_base_units_and_every_metric_explains_itself(
    kind: type[Metrics] | type[ItemMetrics], prefix: str
) -> None:
    for family in kind(CollectorRegistry()).registry.collect():
        assert family.name.startswith(prefix)
        assert not family.name.endswith(("_ms", "_us", "_milliseconds", "_percent", "_kb"))
        assert family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_clicks", "_records"))


def test_labels_are_of_closed_sets_and_never_ids(metrics: Metrics) -> None:
    labels = {
        name
        for instrument in vars(metrics).values()
        for name in getattr(instrument, "_labelnames", ())
    }
    assert labels == {
        *("outcome", "reason", "model", "stage", "graph", "partition", "timing", "part", "source")
    }


@pytest.mark.parametrize("buckets", [LATENCY_BUCKETS, STAGE_BUCKETS, RESTORE_BUCKETS])
def test_buckets_rise(buckets: tuple[float, ...]) -> None:
    assert all(below < above for below, above in pairwise(buckets))


def test_the_latency_objectives_are_bucket_bounds() -> None:
    """So that "at most 12 ms" and "at most 30 ms" are counted, not interpolated."""
    assert {0.012, 0.030} <= set(LATENCY_BUCKETS)


def test_two_workers_in_one_process_share_no_metric() -> None:
    ours, theirs = Metrics(CollectorRegistry()), Metrics(CollectorRegistry())
    ours.late.inc()
    assert value(theirs, "recs_late_clicks_total") == 0
    assert generate_latest(ours.registry) != generate_latest(theirs.registry)
