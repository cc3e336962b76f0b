"""Online = offline: a test set replayed through Kafka gives the offline evaluator's lists.

Always on a made-up shop's log; on RSC15-100k where the data folder (NEXTCLICK_DATA) has it. The
model is trained for seconds: how good it is does not matter here, only that both sides agree.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from jaxtyping import Float32

from bench.faults.service import Deployment
from bench.serving.bundles import random_model
from deploy.demo.answers import AnswerReader, read_replay
from deploy.demo.heldout import hold_out
from deploy.demo.replay import in_order_of_time, replay
from deploy.demo.summary import (
    Answer,
    evaluate_offline,
    in_click_order,
    offline_sessions,
    summarise,
)
from export.__main__ import export_bundle
from export.parity import random_sessions
from stream.contract.messages import Outcome
from stream.settings import KafkaSettings
from train.baselines.popularity import item_support
from train.data.clicks import read_clicks
from train.data.columns import Columns
from train.data.context import ContextField, learn_fields
from train.data.sessions import Sessions, build_sessions
from train.data.synthetic import generate_synthetic
from train.fit.loop import Schedule, fit
from train.fit.training_log import TrainingLog
from train.measure.predictor import ModelPredictor
from train.measure.ranking import session_batches
from train.network.checkpoint import (
    Checkpoint,
    CheckpointInfo,
    load_checkpoint,
    popular_items,
    save_checkpoint,
    weights_of,
)
from train.network.hyperparameters import Hyperparameters
from train.network.model import ModelConfig

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
    train, test = hold_out(generate_synthetic(60_000), 8_000)
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
    deployment = Deployment(kafka, fresh_name(read_log.__name__), exported(checkpoint), tmp_path)
    settings, answers = replayed(log, deployment)

    summary = summarise(
        read_replay(settings, answers),
        evaluate_offline({"offline": checkpoint}, log.train, log.test),
        log.idle_timeout_s,
    )
    print(f"{read_log.__name__}: {summary}")  # which log it was, for `pytest -rP`
    assert (summary.clicks, summary.recommendations) == (len(log.test), len(log.test))
    assert (summary.missing, summary.dead_letters) == (0, 0)
    online, offline = summary.figures["online"], summary.figures["offline"]
    assert online.recall_at_20 == pytest.approx(offline.recall_at_20, abs=5e-5)
    assert online.mrr_at_20 == pytest.approx(offline.mrr_at_20, abs=5e-5)
    # A model that has learnt something: equal figures of two empty lists would prove nothing.
    assert online.recall_at_20 > summary.figures["pop"].recall_at_20
    assert compare_lists(answers, log, checkpoint) > len(log.test) // 2


def test_stream_and_trainer_see_the_same_context_in_every_click(
    kafka: str, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    """With a model whose lists hang on every field, equal lists are equal numbers."""
    log = with_odd_values(shop())
    fields = learn_fields(
        log.train, ["event_type", "dwell_s", "hour", "weekday", "gap"], utc_offset_s=-10_800
    )
    checkpoint = untrained(log, fields, tmp_path / "checkpoint")
    sessions = offline_sessions(log.test, checkpoint.catalogue, log.idle_timeout_s, fields)
    for column, field in enumerate(fields):
        numbers = sessions.context[:, column]
        assert len(set(numbers.tolist())) > 1, f"{field.name} says nothing in this log"
        other = replace(sessions, context=sessions.context.copy())
        other.context[:, column] = (numbers + 1) % field.size
        assert moved(checkpoint, sessions, other) > 0.95, f"{field.name} moves no list"

    deployment = Deployment(kafka, fresh_name("context"), exported(checkpoint), tmp_path)
    _, answers = replayed(log, deployment)
    assert len(answers) == len(log.test)
    assert compare_lists(answers, log, checkpoint) > len(log.test) // 2


def with_odd_values(log: Log) -> Log:
    """A click in ten says nothing, or something new, of its event type; dwell is a decimal."""
    odd = pl.int_range(pl.len()) % 20
    said = pl.when(odd == 3).then(None).when(odd == 11).then(pl.lit("gift"))
    event_type = said.otherwise(pl.col("event_type"))
    dwell_s = (pl.col("dwell_ms") / 1000).round()  # 15.0, whose name is "15"
    train, test = (clicks.with_columns(dwell_s=dwell_s) for clicks in (log.train, log.test))
    return Log(train, test.with_columns(event_type=event_type), log.idle_timeout_s)


def untrained(log: Log, fields: tuple[ContextField, ...], folder: Path) -> Checkpoint:
    """An LSTM over embeddings of the item and of every field."""
    indexed = build_sessions(log.train, context=fields)
    training = TrainingLog(indexed.sessions, None, indexed.catalogue, log.idle_timeout_s, fields)
    config = ModelConfig(
        n_items=len(indexed.catalogue),
        cell="lstm",
        hidden_size=32,
        n_layers=2,
        residual=True,
        context=fields,
    )
    info = CheckpointInfo(
        model=config,
        hyperparameters={},
        training=training.description(),
        idle_timeout_s=log.idle_timeout_s,
        epoch=1,
        protocol="",
        metrics={},
        history=[],
        finished=True,
        popular=popular_items(item_support(indexed.sessions, config.n_items)),
        weights="weights-1.npz",
        resume="resume-1.npz",
    )
    weights = weights_of(random_model(config, seed=3))
    save_checkpoint(folder, info, indexed.catalogue, weights, {})
    return load_checkpoint(folder)


def moved(checkpoint: Checkpoint, sessions: Sessions, other: Sessions) -> float:
    """Share of the sessions' predictions in which some score differs by more than .01."""
    differs = [
        np.abs(scores - other_scores).max() > 0.01
        for scores, other_scores in zip(
            scores_of(checkpoint, sessions).values(),
            scores_of(checkpoint, other).values(),
            strict=True,
        )
    ]
    return float(np.mean(differs))


def exported(checkpoint: Checkpoint) -> Path:
    sizes = [field.size for field in checkpoint.info.model.context]
    sessions = random_sessions(100, len(checkpoint.catalogue), sizes, seed=0)
    return export_bundle(checkpoint, checkpoint.folder.parent / "bundles", K, sessions)


def replayed(log: Log, deployment: Deployment) -> tuple[KafkaSettings, list[Answer]]:
    """The test clicks sent in order of time, and what a worker answered."""
    settings = KafkaSettings(
        bootstrap_servers=deployment.bootstrap_servers,
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
            replay(clicks, deployment.bootstrap_servers, deployment.clicks, CLICKS_PER_SECOND)
            reader.wait_for(len(clicks), quiet_s=30)
    finally:
        deployment.close()
    return settings, reader.answers


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


def compare_lists(answers: list[Answer], log: Log, checkpoint: Checkpoint) -> int:
    """Every list that the evaluator judged, place by place, by its own scores; their number."""
    published = defaultdict(list)
    for answer in in_click_order(answers):
        if answer.recommendation.outcome == Outcome.MODEL:
            published[answer.recommendation.session_id].append(answer.recommendation.items)
    index = checkpoint.catalogue.index
    context = checkpoint.info.model.context
    sessions = offline_sessions(log.test, checkpoint.catalogue, log.idle_timeout_s, context)
    by_prefix = scores_of(checkpoint, sessions)
    for (session_id, position), scores in by_prefix.items():
        items = published[session_id][position - 1]
        listed = [index[item.item_id] for item in items]
        assert len(set(listed)) == K
        best = np.sort(scores)[::-1][:K]
        np.testing.assert_allclose(scores[listed], best, rtol=0, atol=NEAR)
        np.testing.assert_allclose([item.score for item in items], best, rtol=0, atol=NEAR)
    return len(by_prefix)


def scores_of(
    checkpoint: Checkpoint, sessions: Sessions
) -> dict[tuple[str, int], Float32[np.ndarray, "N"]]:
    """The evaluator's scores by session and number of known clicks."""
    by_prefix = {}
    for rows, batch in session_batches(sessions, 256):
        for t, scores in enumerate(ModelPredictor(checkpoint.model).predict(batch), start=1):
            for row, of_session in zip(rows.tolist(), scores, strict=False):
                by_prefix[sessions.session_id[row], t] = of_session.copy()
    return by_prefix
