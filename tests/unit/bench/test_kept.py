"""What every benchmark shares: data sets by name, child processes, and kept results."""

import json
import math
from pathlib import Path

import pytest

from bench.datasets import check_known, folder_of
from bench.measuring import in_child
from bench.provenance import RESULTS, keep
from train.command import TrainError


def test_a_result_is_kept_with_its_provenance_and_a_line_for_each_row(tmp_path: Path) -> None:
    rows = [{"model": "pop", "recall": 0.1}, {"model": "gru", "recall": 0.2}]
    path = tmp_path / "new" / "result.json"
    keep(path, {"protocol": "p", "rows": rows})
    text = path.read_text()
    kept = json.loads(text)
    assert kept["rows"] == rows and kept["protocol"] == "p"
    assert set(kept) >= {"date", "commit", "machine", "versions"}
    assert sum('"model"' in line for line in text.splitlines()) == 2
    keep(path, {"protocol": "p"})
    assert "rows" not in json.loads(path.read_text())


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_kept_result_can_be_read(path: Path) -> None:
    assert json.loads(path.read_text())


def test_a_childs_result_comes_with_what_it_took() -> None:
    result, spent = in_child(math.hypot, 3, 4)
    assert result == 5
    assert spent.seconds > 0
    assert spent.peak_mib > 1


def test_missing_data_and_unknown_names_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXTCLICK_DATA", str(tmp_path))
    with pytest.raises(TrainError, match="rsc15-100k does not exist: set NEXTCLICK_DATA"):
        folder_of("rsc15-100k")
    with pytest.raises(TrainError, match=r"unknown data set 'nowhere': .* has .*rsc15-100k"):
        check_known(["globo-5d", "nowhere"])
