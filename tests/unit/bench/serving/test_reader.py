"""What a latency is, by hand: the clock at receipt minus the click's append time."""

import numpy as np
import pytest

from bench.serving.reader import latencies_ms

MS = 1_000_000


def appended(*rows: tuple[int, int]) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, 2)


def arrivals(*rows: tuple[int, int, int]) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, 3)


def test_an_answer_is_joined_to_its_click_by_partition_and_offset() -> None:
    ms, missing, repeated = latencies_ms(
        arrivals((1, 7, 112 * MS), (0, 7, 203 * MS + MS // 2), (0, 8, 209 * MS)),
        {0: appended((7, 200), (8, 201)), 1: appended((7, 100))},
        skip_first_ms=0,
    )
    assert sorted(ms) == [3.5, 8.0, 12.0]
    assert (missing, repeated) == (0, 0)


def test_clicks_of_the_warm_up_are_not_measured() -> None:
    ms, missing, _ = latencies_ms(
        arrivals((0, 1, 5_000 * MS), (0, 3, 2_004 * MS)),
        {0: appended((0, 1_000), (1, 1_999), (3, 2_000))},
        skip_first_ms=1_000,
    )
    assert ms.tolist() == [4.0]
    assert missing == 0  # offset 0 was, and lies in the warm-up


def test_a_warm_up_begins_behind_the_probe() -> None:
    ms, missing, _ = latencies_ms(
        arrivals((0, 2, 8_040 * MS), (1, 1, 9_003 * MS)),
        {0: appended((1, 1_000), (2, 8_000)), 1: appended((1, 9_000))},
        skip_first_ms=1_000,
        n_probes=1,
    )
    assert ms.tolist() == [3.0]
    assert missing == 0


@pytest.mark.parametrize("answered", [[], [4], [6], [4, 6]])
def test_a_click_without_an_answer_is_missing(answered: list[int]) -> None:
    _, missing, _ = latencies_ms(
        arrivals(*((0, offset, 20 * MS) for offset in answered)),
        {0: appended((4, 10), (5, 10), (6, 10))},
        skip_first_ms=0,
    )
    assert missing == 3 - len(answered)


def test_a_repeated_answer_is_counted_and_its_first_arrival_taken() -> None:
    ms, _, repeated = latencies_ms(
        arrivals((0, 4, 12 * MS), (0, 4, 99 * MS)), {0: appended((4, 10))}, skip_first_ms=0
    )
    assert ms.tolist() == [2.0]
    assert repeated == 1
