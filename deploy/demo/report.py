"""The demo's summary in the terminal."""

from rich.console import Console
from rich.table import Table

from deploy.demo.summary import Summary

ROWS = {
    "online": "online, from the topics",
    "offline": "offline, the same clicks",
    "without_context": "the same network without context",
    "markov": "Markov chain: the last item alone",
    "pop": "most popular items",
    "oracle": "best possible (oracle)",
}


def print_summary(summary: Summary) -> None:
    """Print two tables to stdout: what was delivered, and how good it was."""
    console = Console(highlight=False)
    delivered = Table(title="delivered", title_justify="left", show_header=False, min_width=66)
    delivered.add_column()
    delivered.add_column(justify="right")
    lost = "bold red" if summary.missing else "bold green"
    delivered.add_row("clicks in", f"{summary.clicks:,}")
    delivered.add_row("recommendations out", f"{summary.recommendations:,}")
    delivered.add_row("missing", f"[{lost}]{summary.missing:,}[/]")
    delivered.add_row("dead letters", f"{summary.dead_letters:,}")
    delivered.add_row("latency p50, click's append to reader", f"{summary.latency_p50_ms:.1f} ms")
    delivered.add_row("latency p99", f"{summary.latency_p99_ms:.1f} ms")
    console.print(delivered)
    quality = Table(title="next click in the list", title_justify="left", min_width=66)
    quality.add_column("")
    quality.add_column("Recall@20", justify="right")
    quality.add_column("MRR@20", justify="right")
    for key, name in ROWS.items():
        if key in summary.figures:
            found = summary.figures[key]
            cells = name, f"{found.recall_at_20:.4f}", f"{found.mrr_at_20:.4f}"
            quality.add_row(*cells, style="bold" if key == "online" else None)
    console.print(quality)
    if "without_context" in summary.figures:
        offline, without = summary.figures["offline"], summary.figures["without_context"]
        console.print(
            f"context was worth {offline.recall_at_20 - without.recall_at_20:+.4f} Recall@20 and "
            f"{offline.mrr_at_20 - without.mrr_at_20:+.4f} MRR@20"
        )
