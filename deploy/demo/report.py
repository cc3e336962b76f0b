"""The demo's summary as a reader wants to see it."""

from rich.console import Console
from rich.table import Table

from deploy.demo.summary import Summary


def print_summary(summary: Summary) -> None:
    """Print two tables to stdout: what was delivered, and how good it was."""
    console = Console(highlight=False)
    delivered = Table(title="delivered", title_justify="left", show_header=False, min_width=64)
    delivered.add_column()
    delivered.add_column(justify="right")
    lost = "bold red" if summary.missing else "bold green"
    for name, value in (
        ("clicks in", f"{summary.clicks:,}"),
        ("recommendations out", f"{summary.recommendations:,}"),
        ("missing", f"[{lost}]{summary.missing:,}[/]"),
        ("dead letters", f"{summary.dead_letters:,}"),
        ("latency p50, click's append to reader", f"{summary.latency_p50_ms:.1f} ms"),
        ("latency p99", f"{summary.latency_p99_ms:.1f} ms"),
    ):
        delivered.add_row(name, value)
    console.print(delivered)
    quality = Table(title="next click in the list", title_justify="left", min_width=64)
    quality.add_column("")
    quality.add_column("Recall@20", justify="right")
    quality.add_column("MRR@20", justify="right")
    quality.add_row(
        "[bold]online, from the topics[/]",
        f"[bold]{summary.recall_at_20:.4f}[/]",
        f"[bold]{summary.mrr_at_20:.4f}[/]",
    )
    quality.add_row(
        "offline, the same clicks",
        f"{summary.offline_recall_at_20:.4f}",
        f"{summary.offline_mrr_at_20:.4f}",
    )
    quality.add_row("most popular items", f"{summary.pop_recall_at_20:.4f}", "")
    if summary.oracle_recall_at_20 is not None:
        quality.add_row("best possible (oracle)", f"{summary.oracle_recall_at_20:.4f}", "")
    console.print(quality)
