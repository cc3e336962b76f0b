"""What the dashboard shows: its rows of graphs, and the PromQL behind each line."""

from dataclasses import dataclass

P50_OBJECTIVE_S = 0.012
P99_OBJECTIVE_S = 0.030
"""At 1,000 clicks/s a worker; the alert LatencyOverObjective has the same figure."""


@dataclass(frozen=True, slots=True)
class Graph:
    """One panel: what it shows, in which unit of Grafana's, and its queries by legend."""

    title: str
    text: str
    unit: str
    queries: dict[str, str]
    limits: tuple[float, ...] = ()
    stacked: bool = False
    highest: float | None = None
    logarithmic: bool = False
    """For latencies: shows a backlog of a minute and an objective of milliseconds."""


def quantile(percent: int, metric: str, *labels: str) -> str:
    """A percentile of a histogram over the last minute and all workers, by these labels."""
    by = ", ".join(("le", *labels))
    return f"histogram_quantile({percent / 100}, sum by ({by}) (rate({metric}_bucket[1m])))"


def per_second(metric: str, *labels: str) -> str:
    """A counter's rate over the last minute and all workers, by these labels."""
    by = f" by ({', '.join(labels)})" if labels else ""
    return f"sum{by} (rate({metric}[1m]))"


ROWS: dict[str, list[Graph]] = {
    "Latency": [
        Graph(
            "Append to commit",
            "From the click's append to the broker to the commit of its recommendation. Lines: "
            "the objectives for the median and the 99th percentile.",
            "s",
            {f"p{p}": f"nextclick:recs_latency_seconds:p{p}_1m" for p in (50, 90, 99)},
            limits=(P50_OBJECTIVE_S, P99_OBJECTIVE_S),
            logarithmic=True,
        ),
        Graph(
            "Micro-batch by stage, p99",
            "Which of the five stages is slow: score is the model, deliver is Kafka.",
            "s",
            {"{{stage}}": "nextclick:recs_stage_seconds:p99_1m"},
            logarithmic=True,
        ),
        Graph(
            "The visitor's click to commit",
            "Like the first panel, but from the click's own timestamp: with the producers' delay.",
            "s",
            {f"p{p}": quantile(p, "recs_event_latency_seconds") for p in (50, 99)},
            logarithmic=True,
        ),
        Graph(
            "Worker's time by stage",
            "Seconds per second spent in each stage; 1 is one worker that never waits.",
            "short",
            {"{{stage}}": per_second("recs_stage_seconds_sum", "stage")},
            stacked=True,
        ),
        Graph(
            "One ONNX call, p99",
            "encode steps the sessions, rank scores all items.",
            "s",
            {"{{graph}}": quantile(99, "recs_inference_seconds", "graph")},
        ),
        Graph(
            "Clicks in a micro-batch",
            "At the largest size (256) the worker has no time left.",
            "short",
            {f"p{p}": quantile(p, "recs_batch_clicks") for p in (50, 90)},
        ),
    ],
    "Throughput": [
        Graph(
            "Clicks/s by outcome",
            "model: answered by the model; duplicate: a repeated event; unknown_item: an item the "
            "model has never seen; fallback: popularity, where there is no list; other_event: a "
            "type of event that does not advance a session.",
            "cps",
            {"{{outcome}}": per_second("recs_clicks_total", "outcome")},
            stacked=True,
        ),
        Graph(
            "Bad clicks/s by reason",
            "Sent to the dead-letter topic.",
            "cps",
            {
                "{{reason}}": per_second("recs_rejected_clicks_total", "reason"),
                "all": "nextclick:recs_rejected_clicks:rate1m",
            },
        ),
        Graph(
            "Recommendations/s by model",
            "Two models at once: a roll-out of a new bundle.",
            "cps",
            {"{{model}}": per_second("recs_recommendations_total", "model")},
            stacked=True,
        ),
        Graph(
            "Out of the ordinary",
            "late: older than the session's last click; redelivered: already applied, skipped; "
            "no click: offsets of transaction markers or aborted records; lost: removed by "
            "retention before they were processed, which must stay 0.",
            "cps",
            {
                "late": per_second("recs_late_clicks_total"),
                "redelivered": per_second("recs_skipped_clicks_total"),
                "no click": per_second("recs_offset_holes_total"),
                "lost": per_second("recs_lost_clicks_total"),
            },
        ),
        Graph(
            "Lag",
            "Clicks appended and not yet processed, by partition.",
            "short",
            {
                "partition {{partition}}": "sum by (partition) (recs_consumer_lag_clicks)",
                "all": "nextclick:recs_consumer_lag_clicks:sum",
            },
        ),
        Graph(
            "Share of bad clicks, 5 minutes",
            "The alert BadClicks fires at 5 %; a worker stops itself at one half.",
            "percentunit",
            {"bad": "nextclick:recs_rejected_clicks:share5m"},
            limits=(0.05,),
        ),
    ],
    "Quality": [
        Graph(
            "Live Recall@20 and MRR@20, 15 minutes",
            "The session's next click judges its last list, as the offline evaluator does.",
            "percentunit",
            {
                "Recall@20": "nextclick:recs_live_recall_at_20:ratio15m",
                "MRR@20": "nextclick:recs_live_mrr_at_20:ratio15m",
            },
        ),
        Graph(
            "Judged lists/s",
            "How many lists Recall and MRR are based on; late ones are counted separately.",
            "cps",
            {"{{timing}}": per_second("recs_live_predictions_total", "timing")},
        ),
        Graph(
            "Share of clicks answered by the model",
            "The rest are repeated events, unknown items and sessions without a list. It falls "
            "when the model grows old.",
            "percentunit",
            {
                "model": 'sum(rate(recs_clicks_total{outcome="model"}[5m]))'
                " / (sum(rate(recs_clicks_total[5m])) > 0)"
            },
            highest=1.0,
        ),
    ],
    "State and workers": [
        Graph(
            "Live sessions",
            "By partition; falls when sessions expire.",
            "short",
            {"partition {{partition}}": "sum by (partition) (recs_live_sessions)"},
            stacked=True,
        ),
        Graph(
            "Sessions expired and rebuilt/s",
            "rebuilt: the model's state was recomputed from the trail, after a new bundle.",
            "cps",
            {n: per_second(f"recs_{n}_sessions_total") for n in ("expired", "rebuilt")},
        ),
        Graph(
            "Assignments, 15 minutes",
            "How often each worker was assigned partitions.",
            "short",
            {"{{instance}}": "increase(recs_rebalances_total[15m])"},
        ),
        Graph(
            "Restore",
            "Mean wall time of the restores of the last 15 minutes: no clicks are answered "
            "in these partitions meanwhile.",
            "s",
            {
                "{{instance}}": "increase(recs_restore_seconds_sum[15m])"
                " / (increase(recs_restore_seconds_count[15m]) > 0)"
            },
        ),
        Graph(
            "Changelog records restored/s",
            "Read by restores, before clicks are answered.",
            "cps",
            {"records": per_second("recs_restored_records_total")},
        ),
        Graph(
            "Ready",
            "1: partitions are assigned, restored and served.",
            "short",
            {"{{instance}}": "recs_ready"},
            highest=1.0,
        ),
        Graph(
            "Bundle in service",
            "Workers by bundle.",
            "short",
            {"{{bundle_id}}": "sum by (bundle_id) (recs_bundle_info)"},
            stacked=True,
        ),
        Graph(
            "CPU",
            "Cores used; the worker's batch loop can use one, ONNX Runtime another.",
            "short",
            {"{{instance}}": 'rate(process_cpu_seconds_total{job="nextclick"}[1m])'},
        ),
        Graph(
            "Memory",
            "Resident.",
            "bytes",
            {"{{instance}}": 'process_resident_memory_bytes{job="nextclick"}'},
        ),
    ],
}
