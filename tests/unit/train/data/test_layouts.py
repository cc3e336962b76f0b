"""The commands of docs/logs.md read files of the published layouts, made up here."""

import contextlib
import gzip
import io
import json
import re
import shlex
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from docs.generate import FOLDER
from train.__main__ import main
from train.data.health import Health

PAGE = (FOLDER / "logs.md").read_text("utf-8")
COMMANDS = dict(re.findall(r"(?m)^\| ([^|`]+?) \| `(python -m train look [^`]+)` \|$", PAGE))
SNIPPETS = dict(re.findall(r"(?s)### (\w+)\n[^#]*?```python\n(.*?)```", PAGE))

FIRST_S = 1_572_609_600  # 1 November 2019, 12:00 UTC
SESSIONS = [
    (session, click, item)
    for session in range(40)
    for click, item in enumerate(range(session % 9, session % 9 + 3))
]
"""Session, click and item: three clicks each, a minute apart; the sessions begin 7 hours apart."""


def at_s(session: int, click: int) -> int:
    return FIRST_S + session * 25_200 + click * 60


def shown(session: int, click: int, form: str) -> str:
    return datetime.fromtimestamp(at_s(session, click), UTC).strftime(form)


def lines(file: Path, rows: Sequence[Any], header: str = "") -> None:
    text = "".join(f"{row}\n" for row in ([header] if header else []) + list(rows))
    content = text.encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def retailrocket(file: Path) -> None:
    rows = [f"{at_s(s, c)}123,{s},{'view' if c else 'addtocart'},{i}," for s, c, i in SESSIONS]
    lines(file, rows, "timestamp,visitorid,event,itemid,transactionid")


def yoochoose(file: Path) -> None:
    lines(file, [f"{s},{shown(s, c, '%Y-%m-%dT%H:%M:%S.123Z')},{i},S" for s, c, i in SESSIONS])


def diginetica(file: Path) -> None:
    rows = [f"{s};NA;{i};{1000 * (60 * c + 1)};{shown(s, 0, '%Y-%m-%d')}" for s, c, i in SESSIONS]
    lines(file, rows, "sessionId;userId;itemId;timeframe;eventdate")


def otto(file: Path) -> None:
    sessions: dict[int, list[dict[str, object]]] = {}
    for s, c, i in SESSIONS:
        event = {"aid": i, "ts": 1000 * at_s(s, c) + 123, "type": "clicks"}
        sessions.setdefault(s, []).append(event)
    lines(file, [json.dumps({"session": s, "events": events}) for s, events in sessions.items()])


def rees46(file: Path) -> None:
    rows = [
        f"{shown(s, c, '%Y-%m-%d %H:%M:%S UTC')},view,{i},205,electronics,,4.99,{s},a-{s}"
        for s, c, i in SESSIONS
    ]
    header = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id"
    lines(file, rows, f"{header},user_session")


def lastfm(file: Path) -> None:
    form = "%Y-%m-%dT%H:%M:%SZ"
    lines(
        file,
        [f'user_{s}\t{shown(s, c, form)}\ta-{i}\tThe "B"\t\tSong 7" mix' for s, c, i in SESSIONS],
    )


def mind(file: Path) -> None:
    raw = file.with_name("behaviors.tsv")
    form = "%-m/%-d/%Y %-I:%M:%S %p"
    lines(
        raw,
        [f"{s}\tU{s}\t{shown(s, c, form)}\tN1 N2\tN{i}-1 N99-0" for s, c, i in SESSIONS],
    )
    exec(SNIPPETS["MIND"])


def tmall(file: Path) -> None:
    rows = [f"{s},{i},1,2,3,{shown(s, 0, '%m%d').lstrip('0')},0" for s, c, i in SESSIONS]
    header = "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type"
    lines(file.with_name("user_log_format1.csv"), rows, header)
    exec(SNIPPETS["Tmall"])


def h_and_m(file: Path) -> None:
    rows = [f"{shown(s, 0, '%Y-%m-%d')},00f{s},0{i},.05,2" for s, c, i in SESSIONS]
    lines(file, rows, "t_dat,customer_id,article_id,price,sales_channel_id")


def adressa(file: Path) -> None:
    page = {"eventId": 1, "url": "http://adressa.no", "title": 'Et "ord", og et til'}
    clicks = [
        {**page, "userId": f"cx:{s}", "id": f"a{i}", "time": at_s(s, c)} for s, c, i in SESSIONS
    ]
    lines(file, [json.dumps(click) for click in clicks])


def ga4_events() -> list[dict[str, Any]]:
    return [
        {
            "event_date": shown(s, c, "%Y%m%d"),
            "event_timestamp": 1_000_000 * at_s(s, c) + 123_000,
            "event_name": "view_item",
            "event_params": [{"key": "ga_session_id", "value": {"int_value": s}}],
            "user_pseudo_id": f"{s}.5",
            "items": [{"item_id": f"sku{i}", "item_name": "x"}],
        }
        for s, c, i in SESSIONS
    ]


def ga4_json(file: Path) -> None:
    text = [{**e, "event_timestamp": str(e["event_timestamp"])} for e in ga4_events()]
    lines(file, [json.dumps(event) for event in text])


def ga4_parquet(file: Path) -> None:
    pl.DataFrame(ga4_events()).write_parquet(file)


def snowplow(file: Path) -> None:
    rows = [
        {
            "domain_sessionid": f"s{s}",
            "page_urlpath": f"/p/{i}",
            "derived_tstamp": 1_000_000 * at_s(s, c) + 123_000,
            "event_name": "page_view",
        }
        for s, c, i in SESSIONS
    ]
    frame = pl.DataFrame(rows)
    frame.with_columns(pl.col("derived_tstamp").cast(pl.Datetime("us", "UTC"))).write_parquet(file)


def segment(file: Path) -> None:
    rows = [
        {
            "anonymousId": f"v{s}",
            "type": "track",
            "event": "Product Viewed",
            "properties": {"product_id": f"p{i}"},
            "timestamp": shown(s, c, "%Y-%m-%dT%H:%M:%S.123Z"),
        }
        for s, c, i in SESSIONS
    ]
    lines(file, [json.dumps(row) for row in rows])


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "RetailRocket": retailrocket,
    "YOOCHOOSE (RecSys 2015)": yoochoose,
    "Diginetica (CIKM Cup 2016)": diginetica,
    "OTTO": otto,
    "REES46": rees46,
    "Last.fm 1K, artists": lastfm,
    "MIND, [prepared](#mind)": mind,
    "Tmall (IJCAI 2015), [prepared](#tmall)": tmall,
    "H&M, the purchases of a day": h_and_m,
    "Adressa": adressa,
    "GA4 export, JSON": ga4_json,
    "GA4 export, Parquet": ga4_parquet,
    "Snowplow, unloaded as Parquet": snowplow,
    "Segment": segment,
}
BY_DAY = {"Tmall (IJCAI 2015), [prepared](#tmall)", "H&M, the purchases of a day"}
"""Layouts that know the day alone."""


def test_every_layout_of_the_page_is_tried() -> None:
    assert COMMANDS.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_command_of_a_layout_reads_its_sessions(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    examined: list[Health] = []
    monkeypatch.setattr("train.look.describe", lambda health, name: examined.append(health))
    words = shlex.split(COMMANDS[layout].removeprefix("python -m train "))
    LAYOUTS[layout](Path(words[1]))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(words) == 0, said.getvalue()
    (health,) = examined
    assert (health.records, health.clicks, health.rejected) == (120, 120, {}), said.getvalue()
    assert (health.sessions, health.items) == (40, 11)
    first_s = health.first_timestamp_ms // 1000
    day_s = FIRST_S - FIRST_S % 86_400
    if layout in BY_DAY:
        assert first_s % 86_400 == 0
    elif layout.startswith("Diginetica"):
        assert first_s == day_s + 1
    else:
        assert first_s == FIRST_S
