import json
from pathlib import Path

from bench.training.evaluate import EvaluateBenchSettings, random_sessions, run


def test_a_small_run_keeps_speed_limit_and_share(tmp_path: Path) -> None:
    out = tmp_path / "evaluate.json"
    run(EvaluateBenchSettings(n_items=500, hidden_size=16, sessions=40, rounds=1, out=out))
    result = json.loads(out.read_text())
    limit, found = (
        result[name] for name in ("gemm_limit_predictions_per_second", "predictions_per_second")
    )
    assert 0 < found < limit
    assert abs(result["share"] - found / limit) < 0.01
    assert result["predictions"] == random_sessions(40, 500).n_clicks - 40
