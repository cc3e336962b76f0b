"""The made-up folder that the preparation is measured on."""

from pathlib import Path

import polars as pl

from bench.training.prepare import COLUMNS, make_file, measure
from train.data.clicks import read_rows

N_FILES, N_CLICKS, N_ITEMS = 3, 60_000, 1_000


def test_files_follow_each_other_in_time_and_miss_no_click_but_the_last_ones(
    tmp_path: Path,
) -> None:
    files = [make_file(number, N_FILES, N_CLICKS, N_ITEMS) for number in range(N_FILES)]
    assert files[1].equals(make_file(1, N_FILES, N_CLICKS, N_ITEMS))
    clicks = pl.concat(files)
    assert clicks["timestamp_ms"].is_sorted()
    assert 0.9 * N_CLICKS < len(clicks) < 1.1 * N_CLICKS
    assert clicks["visitor_id"].str.len_bytes().min() > 30  # type: ignore[operator]  # an int
    for number, file in enumerate(files):
        file.write_parquet(tmp_path / f"{number}.parquet")
    assert read_rows(tmp_path, COLUMNS, ()).n_bad == {}
    result = measure(tmp_path)
    assert result["clicks"] == len(clicks)
    assert 4 < result["clicks"] / result["sessions"] < 6
    assert result["train"]["clicks"] > 0.5 * len(clicks)
