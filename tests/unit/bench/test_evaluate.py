import json
from pathlib import Path

import torch

from bench.evaluate import EvaluateBenchSettings, PackedPredictor, made_up_sessions, main
from train.evaluate import rank_targets
from train.model import ModelConfig, SessionModel
from train.predictor import ModelPredictor


def test_the_packed_model_ranks_as_the_model_does() -> None:
    torch.manual_seed(2)
    model = SessionModel(ModelConfig(n_items=301, hidden_size=16)).eval()
    sessions = made_up_sessions(60, 301)
    packed, plain = (
        rank_targets(predictor, sessions, 301)
        for predictor in (PackedPredictor(model), ModelPredictor(model))
    )
    assert packed.rank.tolist() == plain.rank.tolist()


def test_a_small_run_keeps_speed_limit_and_share(tmp_path: Path) -> None:
    out = tmp_path / "evaluate.json"
    main(EvaluateBenchSettings(n_items=500, hidden_size=16, sessions=40, rounds=1, out=out))
    result = json.loads(out.read_text())
    limit, found = (
        result[name] for name in ("gemm_limit_predictions_per_second", "predictions_per_second")
    )
    assert 0 < found < limit
    assert abs(result["share"] - found / limit) < 0.01
    assert result["predictions"] == made_up_sessions(40, 500).n_clicks - 40
