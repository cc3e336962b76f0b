"""``python -m train synthetic``: a made-up click log whose best possible score is known."""

import json
from pathlib import Path

from pydantic import Field

from train.data.clicks import split_by_time, write_clicks
from train.data.oracle import score_oracle
from train.data.synthetic import SyntheticConfig, generate_synthetic
from train.fit.training_log import LogSettings


class SyntheticSettings(SyntheticConfig):
    """Write the click log of a made-up shop, and print how well it can be predicted at best."""

    out: Path
    """Click log to write: .parquet, .csv or .csv.gz."""
    clicks: int = Field(default=1_000_000, ge=1000)
    """Length of the log; fewer than 1,000 would leave too few sessions to measure the oracle on."""


def run_synthetic(settings: SyntheticSettings) -> None:
    """Write the log, and print what its oracle reaches on the sessions `fit` validates on."""
    clicks = generate_synthetic(settings.clicks, settings)
    write_clicks(clicks, settings.out)
    older, newer = split_by_time(clicks, LogSettings.model_fields["validation"].default)
    oracle = score_oracle(settings, newer, older["item_id"].unique().to_list())
    reached = {"oracle_recall_at_20": oracle.recall, "oracle_mrr_at_20": oracle.mrr}
    counts = {"clicks": len(clicks), "predictions": oracle.predictions}
    print(json.dumps(counts | reached, indent=1))
