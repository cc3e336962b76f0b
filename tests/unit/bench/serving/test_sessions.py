"""Live sessions and soaks: the pure parts of their measurement."""

import itertools
from pathlib import Path

import pytest

from bench.serving.pauses import figures
from bench.serving.sessions import MEAN_TRAIL, slowest_stages, states
from bench.serving.soak import LOG_MS, clicks, draw
from bench.serving.workers import disk_mib, totals
from stream.session import decode_state


def test_states_have_the_mean_trail_and_every_other_one_has_event_ids() -> None:
    found = [(key, decode_state(raw)) for key, raw in states("00" * 8, 2000)]
    trails = [state.trail for _, state in found]
    assert found[7][0] == b"session-0000007"
    assert sum(map(len, trails)) / len(trails) == pytest.approx(MEAN_TRAIL, rel=0.1)
    assert all(bool(trail[0].event_hash) == n % 2 for n, trail in enumerate(trails))
    assert all(state.trail[-1].timestamp_ms == state.last_click_ms for _, state in found)


def test_pauses_are_told_by_the_longest_and_by_those_over_50_ms() -> None:
    found = figures([1.0, 2.0, 51.0, 120.0])
    assert (found["answers"], found["longest_ms"], found["over_50_ms"]) == (4, 120.0, 2)
    assert figures([]) == {"answers": 0}


def test_series_are_added_up_over_labels() -> None:
    text = '# HELP a b\na{p="0"} 2.0\na{p="1"} 3.0\nb 1e3\n'
    assert totals(text) == {"a": 5.0, 'a{p="0"}': 2.0, 'a{p="1"}': 3.0, "b": 1000.0}


def test_a_stages_bound_is_the_bucket_of_its_slowest_batch_since_then() -> None:
    name = "recs_stage_seconds_"
    before = {f'{name}count{{stage="plan"}}': 1.0, f'{name}bucket{{le="0.02",stage="plan"}}': 0.0}
    now = {
        f'{name}count{{stage="plan"}}': 3.0,
        f'{name}sum{{stage="plan"}}': 0.02,
        f'{name}bucket{{le="0.015",stage="plan"}}': 1.0,
        f'{name}bucket{{le="0.02",stage="plan"}}': 2.0,
        f'{name}bucket{{le="0.03",stage="plan"}}': 3.0,
    }
    assert slowest_stages(before, now)["plan"] == {"mean": 10.0, "at_most": 20.0}


def test_a_soaks_clicks_go_over_four_hours_and_wait_to_be_answered() -> None:
    told: list[int] = []
    assert len(list(itertools.islice(clicks(2000, told.append), 2000))) == 2000
    assert told == [0, 500, 1000, 1500]
    assert LOG_MS == 4 * 60 * 60 * 1000


def test_the_same_soak_gives_the_same_picture(tmp_path: Path) -> None:
    row = {"seconds": 0.0, "live_sessions": 0, "memory_mib": 80.0, "changelog_mib": 1.0}
    rows = [row, row | {"seconds": 60.0, "live_sessions": 500}]
    one, other = tmp_path / "one.svg", tmp_path / "other.svg"
    for path in (one, other):
        draw(path, {"clicks": 1000, "sent_s": 30.0, "ended_s": 40.0}, rows)
    assert one.read_bytes() == other.read_bytes()
    assert "1,000 clicks" in one.read_text()


def test_a_topic_takes_the_blocks_of_its_files(tmp_path: Path) -> None:
    for topic, n_bytes in (("many-0", 2**20), ("many-1", 2**20), ("more-0", 2**22)):
        (tmp_path / topic).mkdir()
        (tmp_path / topic / "0.log").write_bytes(b"x" * n_bytes)
    assert disk_mib(tmp_path, "many") == pytest.approx(2, abs=0.1)
