"""The demo's summary: joins, quantiles and figures, by hand and against the evaluator."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from deploy.demo.summary import (
    Answer,
    Figures,
    Replay,
    Source,
    Summary,
    evaluate_offline,
    judge,
    latency_ms,
    missing_clicks,
    offline_sessions,
    parse_source,
    print_summary,
    summarise,
)
from stream.contract.messages import ClickRef, Item, Outcome, Recommendation
from train.data.sessions import Catalogue
from train.network.checkpoint import Checkpoint, CheckpointInfo, PopularItem, TrainingData
from train.network.model import ModelConfig, SessionModel

MINUTE_MS = 60_000


def answer(
    source: Source,
    session_id: str,
    item_id: str,
    items: str = "",
    *,
    at_ms: int = 0,
    outcome: Outcome = Outcome.MODEL,
    received_ms: float = 0.0,
    view_ms: int | None = None,
) -> Answer:
    """``items``: one letter an item, best first, one score apart."""
    listed = [Item(letter, -float(place)) for place, letter in enumerate(items)]
    click = ClickRef(item_id, at_ms)
    recommendation = Recommendation(session_id, listed, "m", outcome, click, 0, view_ms)
    return Answer(source, recommendation, received_ms)


def test_a_source_names_partition_and_offset_whatever_the_topic_is_called() -> None:
    assert parse_source("clicks-3-1048576") == (3, 1048576)
    assert parse_source("demo-1-clicks-0-7") == (0, 7)


def test_figures_of_two_sessions_by_hand() -> None:
    # In the order a reader may get them: partitions mixed, a repeated record at the end.
    answers = [
        answer((1, 0), "t", "p", "pqr"),
        answer((0, 0), "s", "a", "bcd"),
        answer((1, 1), "t", "z", "pqr"),  # miss
        answer((0, 1), "s", "c", "abc"),  # second in bcd
        answer((0, 2), "s", "?", "abc", outcome=Outcome.UNKNOWN_ITEM),
        answer((0, 3), "s", "a", "abc"),  # first in abc
        answer((1, 2), "t", "r", "pqr"),  # third in pqr
        answer((0, 1), "s", "c", "abc"),
    ]
    quality = judge(answers, idle_timeout_s=None)
    assert quality.predictions == 4
    assert quality.recall == 3 / 4
    assert quality.mrr == pytest.approx((1 / 2 + 1 + 0 + 1 / 3) / 4)


def test_a_click_is_missing_without_an_answer_and_without_a_dead_letter() -> None:
    replay = Replay(
        appended_ms={(0, 0): 10, (0, 1): 20, (0, 2): 30, (1, 0): 40},
        answers=[answer((0, 0), "s", "a"), answer((0, 0), "s", "a")],
        rejected={(1, 0)},
    )
    assert missing_clicks(replay) == 2


def test_latency_is_receipt_minus_append_by_nearest_rank() -> None:
    appended_ms = {(0, n): 1000 * n for n in range(100)}
    answers = [
        answer((0, n), "s", "a", received_ms=1000 * n + n + 1.5) for n in reversed(range(100))
    ]
    replay = Replay(appended_ms, answers, set())
    assert latency_ms(replay, 0.5) == 50.5
    assert latency_ms(replay, 0.99) == 99.5


def test_the_summary_puts_online_and_offline_side_by_side() -> None:
    replay = Replay(
        appended_ms={(0, 0): 10, (0, 1): 20, (0, 2): 30},
        answers=[
            answer((0, 0), "s", "a", "ab", received_ms=15.0),
            answer((0, 1), "s", "b", "ab", received_ms=27.0),
        ],
        rejected={(0, 2)},
    )
    offline = {"offline": Figures(0.5, 0.25), "pop": Figures(0.125, 0.0625)}
    summary = summarise(replay, offline, 1800)
    assert (summary.clicks, summary.recommendations) == (3, 2)
    assert (summary.missing, summary.dead_letters) == (0, 1)
    assert (summary.latency_p50_ms, summary.latency_p99_ms) == (5.0, 7.0)
    assert summary.figures == {"online": Figures(1.0, 0.5), **offline}
    assert summary.view_age_p50_s is None


def test_a_summary_of_blended_lists_has_those_of_known_items_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = [
        answer((0, 0), "s", "a", "bcd", at_ms=9_000, view_ms=8_000),
        answer((0, 1), "s", "new", "abc", at_ms=9_500, view_ms=8_000, outcome=Outcome.LIVE),
        answer((0, 2), "s", "b", "abc", at_ms=9_900, view_ms=9_950),
    ]
    appended_ms = {a.source: 0 for a in answers}
    summary = summarise(Replay(appended_ms, answers, set()), {}, None)
    # "new" is not in bcd, and "b" second in abc.
    assert summary.figures["online"] == Figures(1 / 2, 1 / 4)
    assert summary.figures["online_known"] == Figures(1.0, 1 / 2)
    assert summary.view_age_p50_s == 1.0
    print_summary(summary)
    out = capsys.readouterr().out
    assert "what the stream has counted" in out
    assert "1.0 s" in out


def test_the_report_says_what_context_was_worth(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {
        "online": Figures(0.71, 0.41),
        "offline": Figures(0.7, 0.4),
        "without_context": Figures(0.69, 0.385),
        "markov": Figures(0.68, 0.375),
    }
    print_summary(Summary(10, 10, 0, 0, 1.0, 2.0, None, figures))
    out = capsys.readouterr().out
    assert "context was worth +0.0100 Recall@20 and +0.0150 MRR@20" in out
    rows = [re.findall(r"[\w.]+", line)[-2:] for line in out.splitlines() if "0." in line]
    assert ["0.6800", "0.3750"] in rows
    assert "oracle" not in out
    print_summary(Summary(10, 10, 0, 0, 1.0, 2.0, None, {"online": Figures(0.71, 0.41)}))
    assert "context" not in capsys.readouterr().out


def test_gaps_are_those_between_known_clicks() -> None:
    """20 and 20 minutes around an unknown item are 40 between known ones: serving expires it."""
    log = clicks(("s", "a", 0), ("s", "?", 20), ("s", "b", 40), ("s", "a", 50))
    sessions = offline_sessions(log, Catalogue(["a", "b"]), idle_timeout_s=1800)
    assert sessions.item_index.tolist() == [1, 0]
    assert len(offline_sessions(log, Catalogue(["a", "b"]), None)) == 1


def test_published_lists_give_the_evaluators_figures(tmp_path: Path) -> None:
    """The law of the demo, without Kafka: a session served click by click, by the design's rules.

    Unknown items and pauses on both sides of the idle timeout are among the clicks.
    """
    random = np.random.default_rng(5)
    catalogue = Catalogue([f"i{n}" for n in range(60)])
    torch.manual_seed(5)
    model = SessionModel(ModelConfig(n_items=60, hidden_size=12)).eval()
    rows = []
    for session in range(80):
        minutes = np.cumsum(random.choice([1, 10, 25, 29, 31, 45], size=8))
        items = random.choice([*catalogue.item_ids, *["?"] * 15], size=8)
        rows += [(f"s{session:02d}", str(i), int(m)) for i, m in zip(items, minutes, strict=True)]
    log = clicks(*rows)
    answers = serve(model, catalogue, log, idle_timeout_ms=30 * MINUTE_MS)

    checkpoint = Checkpoint(tmp_path, info(model, catalogue, 1800), catalogue, model)
    offline = evaluate_offline({"offline": checkpoint}, log, log)
    online = judge(answers, idle_timeout_s=1800)
    in_evaluation = offline_sessions(log, catalogue, 1800)
    targets = np.concatenate([session[1:] for session in in_evaluation.items()])
    assert online.predictions == len(targets) > 200
    assert online.recall == pytest.approx(offline["offline"].recall_at_20, abs=1e-12)
    assert online.mrr == pytest.approx(offline["offline"].mrr_at_20, abs=1e-12)
    assert 0.1 < online.recall < 0.9

    support = np.bincount(in_evaluation.item_index, minlength=60)
    ranks = (support >= support[targets][:, None]).sum(axis=1)  # ties count against
    assert offline["pop"].recall_at_20 == (ranks <= 20).mean()
    assert offline["markov"].recall_at_20 > offline["pop"].recall_at_20


def clicks(*rows: tuple[str, str, int]) -> pl.DataFrame:
    """A log of (session, item, minute), in the order of ``read_clicks``."""
    frame = pl.DataFrame(
        {
            "session_id": [session for session, _, _ in rows],
            "item_id": [item for _, item, _ in rows],
            "timestamp_ms": [minute * MINUTE_MS for _, _, minute in rows],
        }
    )
    return frame.sort(pl.col("timestamp_ms").min().over("session_id"), "session_id", "timestamp_ms")


def serve(
    model: SessionModel, catalogue: Catalogue, log: pl.DataFrame, idle_timeout_ms: int
) -> list[Answer]:
    answers = []
    states: dict[str, torch.Tensor] = {}
    last_ms: dict[str, int] = {}
    in_time = log.sort("timestamp_ms", maintain_order=True)
    for offset, (session_id, item_id, at_ms) in enumerate(in_time.iter_rows()):
        if item_id not in catalogue.index:
            outcome = Outcome.UNKNOWN_ITEM if session_id in states else Outcome.FALLBACK
            answers.append(answer((0, offset), session_id, item_id, at_ms=at_ms, outcome=outcome))
            continue
        if at_ms - last_ms.get(session_id, at_ms) > idle_timeout_ms:
            del states[session_id]
        last_ms[session_id] = at_ms
        before = states.get(session_id, model.initial_state(1))
        no_context = torch.empty(1, 0, dtype=torch.int32)
        with torch.inference_mode():
            query, states[session_id] = model.encode(
                torch.tensor([catalogue.index[item_id]]), no_context, before
            )
            score, index = model.scores(query)[0].topk(20)
        items = [
            Item(catalogue.item_ids[i], s)
            for i, s in zip(index.tolist(), score.tolist(), strict=True)
        ]
        recommendation = Recommendation(
            session_id, items, "m", Outcome.MODEL, ClickRef(item_id, at_ms), 0
        )
        answers.append(Answer((0, offset), recommendation, 0.0))
    return answers


def info(model: SessionModel, catalogue: Catalogue, idle_timeout_s: int) -> CheckpointInfo:
    return CheckpointInfo(
        model=model.config,
        hyperparameters={},
        training=TrainingData(
            first_timestamp_ms=0, last_timestamp_ms=0, clicks=0, sessions=0, items=len(catalogue)
        ),
        idle_timeout_s=idle_timeout_s,
        epoch=1,
        protocol="",
        metrics={},
        history=[],
        finished=True,
        popular=[PopularItem(item_index=n, score=100.0 - n) for n in range(30)],
        weights="",
        resume="",
    )
