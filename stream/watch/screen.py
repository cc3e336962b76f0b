"""How the watch view looks: a tally in, something rich can draw or a line of text out."""

from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stream.contract.messages import Outcome
from stream.live.rules import SOURCES
from stream.settings import WatchSettings
from stream.watch.tally import HISTORY_S, RECENT_S, SHOWN_CLICKS, SessionView, Tally

_BARS = " ▁▂▃▄▅▆▇█"
_PANEL_ROWS = 21  # what the figures need; the session's panel never makes the view jump


_RIGHT: dict[str, Any] = {"justify": "right"}
_DIM: dict[str, Any] = {"style": "dim"}
_LINE: dict[str, Any] = {"no_wrap": True}


def visible(text: str) -> str:
    """What a stranger wrote, without what a terminal would obey: \\x1b for an escape character."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def draw(
    settings: WatchSettings, tally: Tally, session: SessionView | None, now_s: float, trouble: str
) -> RenderableType:
    """The whole view."""
    body = _grid({"ratio": 9}, {"ratio": 13}, expand=True)
    figures = Panel(_figures(tally, now_s), title="in and out", border_style="cyan", padding=(0, 1))
    body.add_row(figures, _session_panel(session, settings))
    head = Text.assemble(
        ("nextclick ", "bold cyan"),
        (f"{settings.clicks_topic} → {settings.recommendations_topic}", "bold"),
        (f"  on {settings.bootstrap_servers}", "dim"),
    )
    if trouble:
        head.append(f"  {trouble}", "bold red")
    odd = [Text(line, "bold red") for line in _oddities(tally)]
    return Group(head, body, *odd, Text("Ctrl-C ends the view, nothing else", "dim"))


def _oddities(tally: Tally) -> list[str]:
    """What was passed over, for lack of a meaning."""
    found = (
        ("records that no worker has written", tally.not_ours),
        ("offsets skipped that the Kafka client cannot read", tally.unreadable),
    )
    return [f"{n.count} {what}, the first at {n.first}" for what, n in found if n.count]


def _grid(*columns: dict[str, Any], **options: Any) -> Table:
    grid = Table.grid(**options)
    for column in columns:
        grid.add_column(**column)
    return grid


def _figures(tally: Tally, now_s: float) -> RenderableType:
    in_rate, out_rate = tally.rates(now_s)
    grid = _grid(_DIM | _LINE, _RIGHT | _LINE, _RIGHT | _DIM | _LINE, padding=(0, 1), expand=True)
    grid.add_row("clicks in", f"[bold green]{in_rate:,.0f}[/]/s", f"{tally.clicks:,}")
    grid.add_row("lists out", f"[bold green]{out_rate:,.0f}[/]/s", f"{tally.recommendations:,}")
    grid.add_row("waiting for a list", f"{tally.waiting:,}", "")
    latency = tally.latency_ms(now_s, 0.5, 0.99)
    if latency is None:
        grid.add_row("latency", "-", "")
    else:
        grid.add_row("latency p50", f"[bold]{latency[0]:,}[/] ms", f"last {RECENT_S} s")
        grid.add_row("latency p99", f"[bold]{latency[1]:,}[/] ms", "append to append")
    quality = tally.quality
    judged = f"{quality.predictions:,} judged"
    grid.add_row(f"Recall@{quality.k}", f"[bold magenta]{quality.recall:.4f}[/]", judged)
    grid.add_row(f"MRR@{quality.k}", f"[bold magenta]{quality.mrr:.4f}[/]", "")
    age = tally.view_age_ms(now_s, 0.5, 0.99)
    behind = (f"{age[0] / 1000:,.1f} s", f"p99 {age[1] / 1000:,.1f} s") if age else ("-", "")
    grid.add_row("view age p50", *behind)
    for outcome in Outcome:
        count, total = tally.outcomes[outcome], tally.recommendations
        share = f"{100 * count / total:.1f} %" if total else ""
        grid.add_row(f"  {outcome}", f"{count:,}", share)
    rejected = tally.dead_letters.total()
    style = "bold red" if rejected else ""
    reasons = ", ".join(
        f"{visible(name)} {count}" for name, count in tally.dead_letters.most_common(2)
    )
    grid.add_row("dead letters", Text(f"{rejected:,}", style), Text(reasons))
    curve = tally.clicks_by_second(now_s)
    peak, top = max(curve), len(_BARS) - 1
    bars = "".join(_BARS[-(-n_clicks * top // max(peak, 1))] for n_clicks in curve)
    legend = f"clicks/s, last {HISTORY_S} s, peak {peak:,}"
    return Group(
        grid,
        *[Text(line, "dim", no_wrap=True) for line in _hits(tally)],
        Text(bars, "green", no_wrap=True, overflow="crop"),
        Text(legend, "dim", no_wrap=True),
    )


def _hits(tally: Tally) -> tuple[str, str]:
    """Which source brought how many of the items that were clicked, in two lines."""
    total = tally.hits.total()
    if not total:
        return "hits by source: none", ""
    shares = [f"{name} {100 * tally.hits[name] / total:.0f} %" for name in SOURCES]
    half = len(SOURCES) // 2
    return f"hits: {', '.join(shares[:half])},", f"      {', '.join(shares[half:])}"


def _session_panel(session: SessionView | None, settings: WatchSettings) -> Panel:
    title = "one session"
    if session is None:
        wanted = settings.session
        text = "no session yet" if wanted is None else f"session {wanted} has not clicked yet"
        return Panel(Text(text, "dim"), title=title, border_style="yellow", height=_PANEL_ROWS)
    name = _LINE | {"overflow": "ellipsis", "ratio": 1}
    clicks = _grid(_RIGHT | _DIM, name, _RIGHT | _LINE, padding=(0, 1))
    first = session.n_clicks - len(session.steps) + 1
    clicks.add_row("", Text("its clicks", "dim"), Text("in list before", "dim"))
    for number, step in enumerate(session.steps, start=first):
        clicks.add_row(f"{number}", Text(visible(step.item_id)), _verdict(step.outcome, step.rank))
    listed = _grid(_RIGHT | _DIM, name, _RIGHT | _DIM, padding=(0, 1))
    listed.add_row("", Text("its list now", "dim"), Text("score", "dim"))
    clicked = {step.item_id for step in session.steps}
    for place, item in enumerate(session.items[:SHOWN_CLICKS], start=1):
        style = "yellow" if item.item_id in clicked else ""
        listed.add_row(f"{place}", Text(visible(item.item_id), style), f"{item.score:.2f}")
    columns = _grid({"ratio": 1}, {"ratio": 1}, padding=(0, 2), expand=True)
    columns.add_row(clicks, listed)
    title = f"session {visible(session.session_id)}, {session.n_clicks} clicks seen"
    more = len(session.items) - SHOWN_CLICKS
    foot = Text(f"yellow: clicked before{f'; {more} more in the list' if more > 0 else ''}", "dim")
    return Panel(Group(columns, foot), title=Text(title), border_style="yellow", height=_PANEL_ROWS)


def _verdict(outcome: str, rank: int | None) -> Text:
    if rank is None:
        return Text("first" if outcome == Outcome.MODEL else outcome, "dim")
    return Text(f"#{rank}", "bold green") if rank else Text("not listed", "red")


def summary_line(tally: Tally, now_s: float, trouble: str) -> str:
    """The figures of the view in one line."""
    in_rate, out_rate = tally.rates(now_s)
    p50, p99 = tally.latency_ms(now_s, 0.5, 0.99) or ("-", "-")
    quality = tally.quality
    age = tally.view_age_ms(now_s, 0.5, 0.99)
    parts = [
        f"clicks {tally.clicks} ({in_rate:.0f}/s)",
        f"lists {tally.recommendations} ({out_rate:.0f}/s)",
        f"waiting {tally.waiting}",
        f"latency p50 {p50} ms, p99 {p99} ms",
        f"Recall@{quality.k} {quality.recall:.4f}, MRR@{quality.k} {quality.mrr:.4f} "
        f"of {quality.predictions}",
        *([f"hits {', '.join(f'{s} {n}' for s, n in tally.hits.items())}"] if tally.hits else []),
        *([f"view age p50 {age[0] / 1000:.1f} s, p99 {age[1] / 1000:.1f} s"] if age else []),
        ", ".join(f"{outcome} {tally.outcomes[outcome]}" for outcome in Outcome),
        f"dead letters {tally.dead_letters.total()}",
        *_oddities(tally),
        *([trouble] if trouble else []),
    ]
    return " | ".join(parts)


def session_line(session: SessionView) -> str:
    """A followed session's newest click and the head of its list, in one line."""
    step = session.steps[-1]
    listed = ", ".join(item.item_id for item in session.items[:5])
    verdict = _verdict(step.outcome, step.rank)
    line = f"{session.session_id} click {session.n_clicks}: {step.item_id} ({verdict}) -> {listed}"
    return visible(line)
