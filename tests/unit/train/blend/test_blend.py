import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float

from tests.unit.train.building import batch_of, sessions_of
from train.baselines.neighbours import vmis_knn
from train.blend.blend import Blend, BlendWeights, load_blend
from train.blend.fit import fit_blend
from train.command import TrainError
from train.data.sessions import Sessions
from train.measure.metrics import figures
from train.measure.ranking import Predictor, SessionBatch, rank_targets

N_ITEMS = 30


@dataclass(frozen=True)
class Ahead:
    """Scores an item by how near it is to so many places after the last click, round the ring."""

    places: int

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        for prefix in batch.steps():
            away = (np.arange(N_ITEMS) - prefix[:, -1:] - self.places) % N_ITEMS
            yield -np.minimum(away, N_ITEMS - away).astype(np.float64)


def walks(n_sessions: int, seed: int) -> Sessions:
    """Sessions of 5 clicks: first 5 places on, then always 10; one in five goes anywhere."""
    rng = np.random.default_rng(seed)
    items = rng.integers(0, N_ITEMS, (n_sessions, 5))
    for click in range(1, 5):
        follows = rng.random(n_sessions) < 0.8
        step = 5 if click == 1 else 10
        items[follows, click] = (items[follows, click - 1] + step) % N_ITEMS
    return sessions_of(items.tolist())


PARTS: dict[str, Predictor] = {"five": Ahead(5), "ten": Ahead(10)}


def weighted(*weights: tuple[float, float]) -> BlendWeights:
    return BlendWeights(
        parts=("five", "ten"), transforms=("standardised", "standardised"), weights=weights
    )


def test_a_blend_is_the_weighted_sum_of_its_parts_by_prefix_length() -> None:
    blend = Blend(PARTS, weighted((1, 0), (0.25, 0.75), (0, 1), (0.5, 0.5)))
    batch = batch_of([[0, 1, 2, 3, 4, 5]])
    weights = [*blend.weights.weights, blend.weights.weights[-1]]
    five_and_ten = zip(PARTS["five"].predict(batch), PARTS["ten"].predict(batch), strict=True)
    for (first, second), (five, ten), both in zip(
        weights, five_and_ten, blend.predict(batch), strict=True
    ):
        # Both have the same mean and deviation, being the same numbers in another order.
        expected = (first * five + second * ten - five.mean()) / five.std()
        assert both == pytest.approx(expected, abs=1e-5)


def test_every_row_of_a_batch_gets_the_scores_of_its_own_prefix() -> None:
    blend = Blend(PARTS, weighted((1, 0), (0.25, 0.75), (0, 1), (0.5, 0.5)))
    sessions = [[3, 4, 5], [7, 8], [9, 1]]
    together = [scores.copy() for scores in blend.predict(batch_of(sessions))]
    for row, session in enumerate(sessions):
        for step, scores in enumerate(blend.predict(batch_of([session]))):
            assert (together[step][row] == scores[0]).all()


def test_each_part_gets_the_prefixes_that_it_knows_and_the_blend_beats_both() -> None:
    blend = fit_blend(PARTS, walks(400, seed=1), N_ITEMS)
    (five, ten), *later = blend.weights.weights
    assert five > ten
    assert all(ten > five for five, ten in later)
    held_out = walks(200, seed=2)
    found = figures(rank_targets(blend, held_out, N_ITEMS))
    for part in PARTS.values():
        alone = figures(rank_targets(part, held_out, N_ITEMS))
        assert found["mrr_at_20"] > alone["mrr_at_20"] + 0.1


def test_on_its_own_sessions_a_blend_is_no_worse_than_its_best_part() -> None:
    sessions = walks(300, seed=3)
    parts: dict[str, Predictor] = {**PARTS, "vmis-knn": vmis_knn(walks(300, seed=4), N_ITEMS)}
    found = figures(rank_targets(fit_blend(parts, sessions, N_ITEMS), sessions, N_ITEMS))
    for part in parts.values():
        alone = figures(rank_targets(part, sessions, N_ITEMS))
        assert (
            found["recall_at_20"] + found["mrr_at_20"] >= alone["recall_at_20"] + alone["mrr_at_20"]
        )


def test_a_part_that_knows_nothing_gets_no_weight() -> None:
    @dataclass(frozen=True)
    class Nothing:
        def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
            for prefix in batch.steps():
                yield np.zeros((len(prefix), N_ITEMS))

    weights = fit_blend({**PARTS, "nothing": Nothing()}, walks(100, seed=5), N_ITEMS).weights
    assert [row[2] for row in weights.weights] == [0.0] * 4


def test_clicks_that_are_no_targets_do_not_move_the_weights() -> None:
    # All but the first next click count for nothing, so that only five places on pays.
    sessions = walks(200, seed=6)
    sessions.target_weight[np.arange(sessions.n_clicks) % 5 > 1] = 0.0
    assert all(five > ten for five, ten in fit_blend(PARTS, sessions, N_ITEMS).weights.weights)


def test_a_sample_of_the_sessions_gives_about_the_same_weights() -> None:
    (five, ten), *later = fit_blend(
        PARTS, walks(2000, seed=7), N_ITEMS, max_predictions=500
    ).weights.weights
    assert five > ten
    assert all(ten > five for five, ten in later)


def test_a_blend_of_no_predictions_is_refused() -> None:
    with pytest.raises(TrainError, match="found no session of two clicks"):
        fit_blend(PARTS, sessions_of([]), N_ITEMS)


def test_a_blend_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    blend = Blend(PARTS, weighted((1, 0), (0.25, 0.75), (0, 1), (0.5, 0.5)))
    blend.write(tmp_path / "blend.json")
    assert load_blend(tmp_path / "blend.json", PARTS) == blend


def test_wrong_blends_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "blend.json"
    with pytest.raises(TrainError, match=r"blend\.json cannot be read"):
        load_blend(path, PARTS)
    Blend(PARTS, weighted(*[(1, 0)] * 4)).write(path)
    with pytest.raises(
        TrainError, match=r"blends five, ten, but the given models \(five, gru\) do not include ten"
    ):
        load_blend(path, {"five": PARTS["five"], "gru": PARTS["ten"]})
    kept = json.loads(path.read_text())
    kept["weights"][2] = [1.0]
    path.write_text(json.dumps(kept))
    with pytest.raises(TrainError, match="2 parts, but transforms and weights for"):
        load_blend(path, PARTS)
    path.write_text("{}")
    with pytest.raises(TrainError, match="is not a blend: parts: Field required"):
        load_blend(path, PARTS)
