"""Online = offline: a test set replayed through Kafka gives the offline evaluator's lists.

Always on a made-up shop's log; on RSC15-100k where the data folder (NEXTCLICK_DATA) has it. The
model is trained for seconds: how good it is does not matter here, only that both sides agree.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from jaxtyping import Float32

from deploy.answers import AnswerReader, read_replay
from deploy.heldout import hold_out
from deploy.replay import in_order_of_time, replay
from deploy.summary import Answer, evaluate_offline, in_click_order, offline_sessions, summarise
from export.__main__ import export_bundle
from export.parity import random_sessions
from stream.messages import Outcome
from stream.settings import KafkaSettings
from tests.integration.service import Deployment
from train.checkpoint import Checkpoint, load_checkpoint
from train.clicks import Columns, read_clicks
from train.evaluate import session_batches
from train.fit import Schedule, TrainingLog, fit
from train.hyperparameters import Hyperparameters
from train.predictor import ModelPredictor
from train.sessions import build_sessions
from train.shop import generate_shop

DATA = Path(os.environ.get("NEXTCLICK_DATA", Path(__file__).parents[2] / "../shared/data"))
K = 20
CLICKS_PER_SECOND = 2000
NEAR = 1e-5
"""Scores of PyTorch and ONNX Runtime differ by some 1e-6: closer neighbours may change places."""


class Log(NamedTuple):
    train: pl.DataFrame
    test: pl.DataFrame
    idle_timeout_s: int | None


def shop() -> Log:
    train, test = hold_out(generate_shop(60_000), 8_000)
    return Log(train, test, 1800)


def rsc15() -> Log:
    folder = DATA / "rsc15-100k"
    if not folder.is_dir():
        pytest.skip(f"{folder} not found; NEXTCLICK_DATA names the folder of the public logs")
    columns = Columns(preset="public")
    train = read_clicks(folder / "train.tsv.gz", columns).clicks
    # Its sessions come with names, and gaps of up to 3,594 s inside them: they never expire.
    return Log(train, read_clicks(folder / "test.tsv.gz", columns).clicks, None)


@pytest.mark.parametrize("read_log", [shop, rsc15])
def test_a_replay_through_kafka_gives_the_evaluators_lists_and_figures(
    read_log: Callable[[], Log],
    kafka: str,
    fresh_name: Callable[[str], str],
    tmp_path: Path,
) -> None:
    log = read_log()
    checkpoint = trained(log, tmp_path / "checkpoint")
    sessions = random_sessions(100, len(checkpoint.catalogue), [], seed=0)
    bundle = export_bundle(checkpoint, tmp_path / "bundles", K, sessions)
    deployment = Deployment(kafka, fresh_name(read_log.__name__), bundle, tmp_path)
    settings = KafkaSettings(
        bootstrap_servers=kafka,
        app_id=deployment.app,
        clicks_topic=deployment.clicks,
        recommendations_topic=deployment.recommendations,
        dead_letter_topic=deployment.dead_letters,
    )
    deployment.create_topics()
    try:
        deployment.start()
        with AnswerReader(settings) as reader:
            clicks = in_order_of_time(log.test)
            replay(clicks, kafka, deployment.clicks, CLICKS_PER_SECOND)
            reader.wait_for(len(clicks), quiet_s=30)
    finally:
        deployment.close()

    summary = summarise(
        read_replay(settings, reader.answers),
        evaluate_offline(checkpoint, log.test),
        oracle_recall_at_20=None,
        idle_timeout_s=log.idle_timeout_s,
    )
    print(f"{read_log.__name__}: {summary}")  # which log it was, for `pytest -rP`
    assert (summary.clicks, summary.recommendations) == (len(log.test), len(log.test))
    assert (summary.missing, summary.dead_letters) == (0, 0)
    assert summary.recall_at_20 == pytest.approx(summary.offline_recall_at_20, abs=5e-5)
    assert summary.mrr_at_20 == pytest.approx(summary.offline_mrr_at_20, abs=5e-5)
    # A model that has learnt something: equal figures of two empty lists would prove nothing.
    assert summary.recall_at_20 > summary.pop_recall_at_20
    compare_lists(reader.answers, log, checkpoint)


def trained(log: Log, folder: Path) -> Checkpoint:
    torch.set_num_threads(1)
    indexed = build_sessions(log.train)
    newest = indexed.sessions.slice(-8_000, len(indexed.sessions))
    fit(
        TrainingLog(newest, None, indexed.catalogue, log.idle_timeout_s),
        Hyperparameters(hidden_size=48, n_negatives=256, batch_size=32),
        Schedule(epochs=3),
        folder,
    )
    return load_checkpoint(folder)


def compare_lists(answers: list[Answer], log: Log, checkpoint: Checkpoint) -> None:
    """Every list that the evaluator judged, place by place, by the evaluator's own scores."""
    published = defaultdict(list)
    for answer in in_click_order(answers):
        if answer.recommendation.outcome == Outcome.MODEL:
            published[answer.recommendation.session_id].append(answer.recommendation.items)
    index = checkpoint.catalogue.index
    n_compared = 0
    for (session_id, position), scores in offline_scores(log, checkpoint).items():
        items = published[session_id][position - 1]
        listed = [index[item.item_id] for item in items]
        assert len(set(listed)) == K
        best = np.sort(scores)[::-1][:K]
        np.testing.assert_allclose(scores[listed], best, rtol=0, atol=NEAR)
        np.testing.assert_allclose([item.score for item in items], best, rtol=0, atol=NEAR)
        n_compared += 1
    assert n_compared > len(log.test) // 2


def offline_scores(
    log: Log, checkpoint: Checkpoint
) -> dict[tuple[str, int], Float32[np.ndarray, "N"]]:
    """The evaluator's scores by session and number of known clicks."""
    sessions = offline_sessions(log.test, checkpoint.catalogue, log.idle_timeout_s)
    by_prefix = {}
    for rows, batch in session_batches(sessions, 256):
        for t, scores in enumerate(ModelPredictor(checkpoint.model).predict(batch), start=1):
            for row, of_session in zip(rows, scores, strict=False):
                by_prefix[sessions.session_id[row], t] = of_session
    return by_prefix
