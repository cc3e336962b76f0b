"""The demo's own processes, on a bundle that learns from the stream and on one that does not."""

import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from bench.faults.traffic import LOG_BEGIN_MS
from bench.serving.bundles import even_live, write_tiny_bundle
from deploy.demo.answers import AnswerReader, read_replay
from deploy.demo.replay import replay
from deploy.demo.steps import Demo, DemoSettings, services_of
from deploy.demo.summary import summarise
from stream.model.bundle import Live
from stream.settings import KafkaSettings, TopicsSettings
from stream.transport.topics import create_topics

N_CLICKS = 600


@pytest.mark.parametrize("live", [None, even_live(20)], ids=["network", "live"])
def test_the_item_processor_runs_beside_the_worker_where_lists_learn(
    live: Live | None,
    kafka: str,
    fresh_name: Callable[[str], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = fresh_name("demo")
    settings = KafkaSettings(
        bootstrap_servers=kafka,
        app_id=name,
        clicks_topic=f"{name}-clicks",
        recommendations_topic=f"{name}-recommendations",
        dead_letter_topic=f"{name}-dead-letters",
    )
    create_topics(TopicsSettings(**settings.model_dump()))
    bundle = write_tiny_bundle(tmp_path / "bundles", k=20, live=live)
    # A click in five is on an item that the network does not know.
    clicks = pl.DataFrame(
        {
            "session_id": [f"s{n % 100}" for n in range(N_CLICKS)],
            "item_id": [
                f"new-{n % 7}" if n % 5 == 3 else f"item-{n % 50}" for n in range(N_CLICKS)
            ],
            "timestamp_ms": [LOG_BEGIN_MS + 1000 * n for n in range(N_CLICKS)],
        }
    )
    demo = Demo(DemoSettings(out=tmp_path), settings, time.monotonic())
    with services_of(demo, bundle) as services, AnswerReader(settings) as reader:
        replay(clicks, kafka, settings.clicks_topic, 150)
        reader.wait_for(N_CLICKS, quiet_s=30)
        assert all(service.running for service in services.values())
    assert not any(service.running for service in services.values())
    assert [*services] == ["worker"] + (["item processor"] if live else [])
    told = capsys.readouterr().out
    assert all(f"{service}: ready, metrics on http://" in told for service in services)
    summary = summarise(read_replay(settings, reader.answers), {}, None)
    assert (summary.clicks, summary.recommendations, summary.missing) == (N_CLICKS, N_CLICKS, 0)
    assert ("online_known" in summary.figures) == (live is not None)
    if summary.view_age_p50_s is not None:
        assert -60 < summary.view_age_p50_s < 600, "counts of this log, a few seconds behind"
