"""What a model says of itself when it is loaded."""

import json
from pathlib import Path

import structlog

from bench.serving.bundles import write_tiny_bundle
from stream.model.models import load_model


def test_the_way_to_rank_is_logged_with_what_was_measured(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logged:
        load_model(write_tiny_bundle(tmp_path, n_items=2000))
    (event,) = logged
    assert (event["event"], event["log_level"]) == ("ranking_chosen", "info")
    assert event["variant"] in event["us_a_row"].keys() == {"float32", "int8"}
    assert event["int8_overlap"] >= 0.999
    assert json.loads(json.dumps(event))["us_a_row"]["int8"].keys() == {"1", "16", "32", "64"}
