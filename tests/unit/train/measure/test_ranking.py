from collections.abc import Iterator
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.unit.train.building import sessions_of
from train.measure.metrics import figures
from train.measure.predictor import ModelPredictor
from train.measure.ranking import SessionBatch, conservative_rank, rank_targets, session_batches
from train.network.model import ModelConfig, SessionModel


@dataclass
class LastItemScores:
    """Scores that depend on the last click alone: a table, row = last click."""

    table: np.ndarray

    def predict(self, batch: SessionBatch) -> Iterator[np.ndarray]:
        for prefix in batch.steps():
            yield self.table[prefix[:, -1]]


def test_three_sessions_worked_by_hand() -> None:
    # Items 0 to 3. After 0: scores 4 3 2 1. After 1: 1 1 1 0. After 2: 0 5 5 9.
    table = np.array([[4, 3, 2, 1], [1, 1, 1, 0], [0, 5, 5, 9], [0, 0, 0, 0]], dtype=np.float32)
    clicks = [
        [0, 1, 0],  # after 0 comes 1: rank 2, new. After 1 comes 0: tied with 1 and 2, rank 3, seen
        [0, 0],  # after 0 comes 0: rank 1, seen
        [2, 3, 1],  # after 2 comes 3: rank 1, new. After 3 comes 1: all tied, rank 4, new
    ]
    ranks = rank_targets(LastItemScores(table), sessions_of(clicks), n_items=4)
    by_case = {
        (session, position): (rank, novel)
        for session, position, rank, novel in zip(
            ranks.session.tolist(),
            ranks.position.tolist(),
            ranks.rank.tolist(),
            ranks.novel.tolist(),
            strict=True,
        )
    }
    assert by_case == {
        (0, 1): (2, True),
        (0, 2): (3, False),
        (1, 1): (1, False),
        (2, 1): (1, True),
        (2, 2): (4, True),
    }
    result = figures(ranks)
    assert result["predictions"] == 5
    assert result["recall_at_1"] == pytest.approx(2 / 5)
    assert result["recall_at_5"] == 1
    assert result["mrr_at_1"] == pytest.approx(2 / 5)
    assert result["mrr_at_5"] == pytest.approx((1 / 2 + 1 / 3 + 1 + 1 + 1 / 4) / 5)
    assert result["novel_predictions"] == 3
    assert result["novel_recall_at_1"] == pytest.approx(1 / 3)
    assert result["novel_mrr_at_5"] == pytest.approx((1 / 2 + 1 + 1 / 4) / 3)


def test_predictions_come_by_session_and_position_whatever_the_lengths() -> None:
    table = np.eye(5, dtype=np.float32)
    ranks = rank_targets(LastItemScores(table), sessions_of([[1, 2], [0, 1, 2, 3], [4]]), n_items=5)
    assert ranks.session.tolist() == [0, 1, 1, 1]
    assert ranks.position.tolist() == [1, 1, 2, 3]
    assert ranks.length.tolist() == [2, 4, 4, 4]
    assert ranks.target.tolist() == [2, 1, 2, 3]


def test_a_click_of_no_weight_is_read_and_is_no_target() -> None:
    # Item 1 lists 0 first; were the click on it not read, the last prediction would come from 0.
    table = np.array([[0, 9, 1], [9, 0, 1], [0, 0, 0]], dtype=np.float32)
    sessions = sessions_of([[0, 1, 0, 1]])
    weighed = replace(sessions, target_weight=np.array([1, 0, 3, 0.5], dtype=np.float32))
    ranks = rank_targets(LastItemScores(table), weighed, n_items=3)
    assert ranks.position.tolist() == [2, 3]
    assert ranks.rank.tolist() == [1, 1]
    assert ranks.weight.tolist() == [3, 0.5]
    assert ranks.novel.tolist() == [False, False]  # the click that is no target was still made


def test_ties_count_against_the_model() -> None:
    scores = np.array([[3.0, 3.0, 3.0, 1.0], [3.0, 2.0, 2.0, 1.0]], dtype=np.float32)
    assert conservative_rank(scores, np.array([0, 0])).tolist() == [3, 1]
    assert conservative_rank(scores, np.array([2, 1])).tolist() == [3, 3]


def test_a_score_that_is_no_number_counts_against_the_model() -> None:
    nan = np.nan
    scores = np.array([[nan, 2.0, 1.0], [nan, 2.0, 1.0], [nan, nan, nan]], dtype=np.float32)
    assert conservative_rank(scores, np.array([0, 1, 1])).tolist() == [3, 2, 3]


def test_ranks_need_scores_of_no_certain_type_or_layout() -> None:
    row = np.array([3.0, 3.0, 2.0, 9.0])
    target = np.array([0, 2])
    for scores in (
        np.tile(row, (2, 1)),
        np.broadcast_to(row, (2, 4)),
        np.tile(row, (2, 2))[:, ::2],
    ):
        expected = [int((s >= s[t]).sum()) for s, t in zip(scores, target, strict=True)]
        assert conservative_rank(scores, target).tolist() == expected
        assert conservative_rank(scores.astype(np.float32), target).tolist() == expected


sessions = st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=7), min_size=1, max_size=12)


@given(sessions, st.integers(1, 5))
def test_batches_hold_every_session_with_a_next_click_once(
    clicks: list[list[int]], batch_size: int
) -> None:
    seen = {}
    for rows, batch in session_batches(sessions_of(clicks), batch_size):
        assert len(rows) <= batch_size
        assert batch.lengths.tolist() == sorted(batch.lengths.tolist(), reverse=True)
        for row, items, length in zip(rows.tolist(), batch.item_index, batch.lengths, strict=True):
            assert row not in seen
            seen[row] = items[:length].tolist()
    assert seen == {row: session for row, session in enumerate(clicks) if len(session) > 1}


@given(sessions)
def test_steps_are_the_prefixes_that_have_a_next_click(clicks: list[list[int]]) -> None:
    for rows, batch in session_batches(sessions_of(clicks), 4):
        prefixes = [
            (int(rows[b]), prefix.tolist())
            for step in batch.steps()
            for b, prefix in enumerate(step)
        ]
        expected = [(r, clicks[r][:t]) for r in rows.tolist() for t in range(1, len(clicks[r]))]
        assert sorted(prefixes) == sorted(expected)


@settings(deadline=None, max_examples=20)
@given(sessions)
def test_sessions_ranked_together_rank_as_they_do_alone(clicks: list[list[int]]) -> None:
    torch.manual_seed(6)
    predictor = ModelPredictor(SessionModel(ModelConfig(n_items=11, hidden_size=5)).eval())
    together = rank_targets(predictor, sessions_of(clicks), n_items=11)
    by_session = {
        session: sorted(together.rank[together.session == session].tolist())
        for session in range(len(clicks))
    }
    for session, items in enumerate(clicks):
        alone = rank_targets(predictor, sessions_of([items]), n_items=11)
        assert sorted(alone.rank.tolist()) == by_session[session]


def test_no_session_with_a_next_click_means_no_prediction() -> None:
    predictor = LastItemScores(np.zeros((3, 3)))
    result = figures(rank_targets(predictor, sessions_of([[1], [2]]), n_items=3))
    assert result["predictions"] == 0
    assert result["recall_at_20"] == 0
