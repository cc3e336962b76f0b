"""What make faults counts, without a broker."""

import json
import struct
from pathlib import Path
from typing import Any

from bench.faults.__main__ import due, rows_so_far, summary
from bench.faults.catalogue import FAULTS
from bench.faults.scene import CONTROL, abort_markers, gaps
from bench.faults.worker_without import GUARDS


def row(fault: str, seed: int, **more: Any) -> dict[str, Any]:
    damage = dict.fromkeys(("missing", "duplicates", "over_applied", "under_applied"), 0)
    key = {"code": "c", "fault": fault, "seed": seed, "pinned": False, "without": None}
    return key | damage | {"hit": True, "exact": True, "gap_s": 1.0 * seed} | more


def test_a_second_call_goes_on_where_the_first_stopped() -> None:
    faults = ["kill", "join"]
    assert due([], faults, 4, False, None) == faults
    done = [row("kill", 1), row("kill", 2), row("join", 1)]
    assert due(done, faults, 4, False, None) == ["join"]
    assert due(done, faults, 4, True, None) == faults, "nothing ran on one core"
    assert due(done, faults, 3, True, None) == faults


def test_a_second_call_elsewhere_goes_on_behind_what_the_result_kept(tmp_path: Path) -> None:
    lines, out = tmp_path / "c.jsonl", tmp_path / "faults.json"
    assert rows_so_far(lines, out, "c") == []
    lines.unlink()
    out.write_text(json.dumps({"rows": [row("kill", 1), row("kill", 1, code="older")]}))
    assert rows_so_far(lines, out, "c") == [row("kill", 1)]
    out.unlink()
    assert rows_so_far(lines, out, "c") == [row("kill", 1)], "they are lines now"


def test_a_run_whose_fault_did_not_hit_is_repeated_and_one_that_went_wrong_is_not() -> None:
    missed = [row("kill", seed, hit=False) for seed in (1, 2, 3)]
    assert due(missed, ["kill"], 4, False, None) == ["kill"]
    assert due([*missed, row("kill", 4, hit=False)], ["kill"], 4, False, None) == []
    wrong = [row("kill", seed, hit=False, exact=False, error="not ready") for seed in (1, 2)]
    assert due(wrong, ["kill"], 4, False, None) == []
    of = summary([*missed, *wrong])["faults"]["c"]["kill"]
    assert (of["runs"], of["exact"], of["not_hit"]) == (2, 0, 3)


def test_a_guard_that_is_out_needs_one_failure() -> None:
    exact = row("kill", 1, without="position")
    assert due([exact], ["kill"], 1, False, "position") == ["kill"]
    failed = row("kill", 2, without="position", exact=False, duplicates=3)
    assert due([exact, failed], ["kill"], 1, False, "position") == []
    found = summary([row("kill", 1), exact, failed])
    assert found["guards"] == {"position": {"fault": "kill", "runs": 2, "failed": 1}}
    assert found["faults"]["c"]["kill"]["duplicates"] == 0, "a run without a guard is no run"


def test_the_longest_gap_is_that_of_the_partition_that_waits_longest() -> None:
    arrivals = [(0, 0.0), (1, 3.0), (0, 3.5), (1, 4.0), (0, 4.5), (0, 5.0), (1, 7.0), (1, 7.5)]
    assert gaps(arrivals, 3.6) == {"gap_s": 2.0, "partition_gap_s": 3.0}


def test_aborts_are_counted_in_a_partitions_log(tmp_path: Path) -> None:
    def batch(attributes: int, kind: int) -> bytes:
        record = b"\x10\x00\x00\x00\x08" + struct.pack(">hh", 0, kind) + b"\x00\x00"
        body = struct.pack(">ibihiqqqhii", 0, 2, 0, attributes, 0, 0, 0, 1, 0, 0, 1) + record
        return struct.pack(">qi", 0, len(body)) + body

    path = tmp_path / "0.log"
    marker = 0x10 | CONTROL
    path.write_bytes(batch(0x10, 0) + batch(marker, 1) + batch(marker, 0) + batch(marker, 0))
    assert abort_markers(path) == 2


def test_every_guard_has_a_fault_that_reveals_it() -> None:
    assert {guard.revealed_by for guard in GUARDS.values()} <= FAULTS.keys()
