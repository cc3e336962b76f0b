"""Short forms of ``make fuzz`` and ``make day``."""

import shutil
from pathlib import Path

from bench.faults.hostile import Corpus
from bench.faults.service import Deployment
from bench.fuzz import CORPUS, FuzzSettings, measure, passed
from tests.integration.conftest import own_deployment


def corpus_in(folder: Path) -> Corpus:
    return Corpus(Path(shutil.copy(CORPUS, folder)))


def test_hostile_records_between_good_clicks_cost_nobody_an_answer(
    deployment: Deployment, tmp_path: Path
) -> None:
    row = measure(FuzzSettings(minutes=0.25), None, deployment, corpus_in(tmp_path))
    assert passed(row), row
    assert row["good"] > 1000 and sum(row["dead_letters"].values()) > 100


def test_an_hour_of_all_traffic_and_a_broker_that_restarts_is_exact(tmp_path: Path) -> None:
    with own_deployment(tmp_path) as (broker, deployment):
        settings = FuzzSettings(hours=1.0, faults="broker_term")
        row = measure(settings, broker, deployment, corpus_in(tmp_path))
    assert passed(row), row
    assert row["sent"]["aborted"] and row["sent"]["retries"]
