from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tests.unit.train.building import markov_clicks
from train.baselines.named import build_baselines
from train.baselines.popularity import item_support
from train.data.context import ContextField, learn_fields
from train.data.filters import EventTypes
from train.data.sessions import build_catalogue, build_sessions
from train.fit.loop import Schedule, Watch, fit
from train.fit.resume import FitError
from train.fit.training_log import TrainingLog
from train.measure.metrics import figures
from train.measure.ranking import rank_targets
from train.network.checkpoint import CheckpointInfo, EpochRecord, load_checkpoint, weights_of
from train.network.hyperparameters import Hyperparameters
from train.network.trainer import Trainer

SMALL = Hyperparameters(
    loss="bpr-max",
    embedding="separate",
    hidden_size=32,
    n_negatives=64,
    batch_size=32,
    dropout_embedding=0.0,
    dropout_hidden=0.0,
    learning_rate=0.1,
    bptt=1,
    order="random",
    sample_alpha=0.5,
    momentum=0.0,
)


def a_log(
    predictability: float = 0.9, n_sessions: int = 600, *, validate: bool = True
) -> TrainingLog:
    clicks = markov_clicks(predictability, n_sessions, n_items=40, seed=2)
    in_train = pl.col("session_id") < f"{n_sessions * 4 // 5:08d}"
    train = build_sessions(clicks.filter(in_train))
    validation = build_sessions(clicks.filter(~in_train), train.catalogue).sessions
    return TrainingLog(train.sessions, validation if validate else None, train.catalogue, 1800)


def pop_recall(log: TrainingLog) -> float:
    assert log.validation is not None
    pop = build_baselines(log.train, len(log.catalogue))["pop"]
    ranks = rank_targets(pop, log.validation, len(log.catalogue))
    return figures(ranks)["recall_at_1"]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"loss": "cross-entropy"},
        {"embedding": "shared"},
        {"n_layers": 2},
        {"momentum": 0.3, "learning_rate": 0.05},
        {"loss": "softmax"},
        {"loss": "top1-max"},
        {"cell": "rnn"},
        {"cell": "lstm", "residual": True},
        {"cell": "window"},
        {"embedding": "one-hot"},
        {"normalise": 12.0, "loss": "cross-entropy"},
        {"bptt": 4},
        {"optimiser": "adam", "learning_rate": 0.01},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_a_predictable_log_is_learnt(tmp_path: Path, change: dict[str, object]) -> None:
    log = a_log(predictability=0.9)
    hyperparameters = SMALL.model_copy(update=change)
    info = fit(log, hyperparameters, Schedule(epochs=8, patience=0), tmp_path)
    # The chain's follower is right 90 % of the time; popularity is right by chance, 1 in 40.
    assert info.metrics["recall_at_1"] > 0.8
    assert pop_recall(log) < 0.1


@pytest.mark.parametrize("loss", ["bpr-max", "cross-entropy"])
def test_nothing_is_learnt_where_there_is_nothing_to_learn(tmp_path: Path, loss: str) -> None:
    log = a_log(predictability=0.0)
    hyperparameters = SMALL.model_copy(update={"loss": loss})
    info = fit(log, hyperparameters, Schedule(epochs=4, patience=0), tmp_path)
    # 600 predictions at a chance of 1 in 40: 0.07 is seven standard deviations above.
    assert info.metrics["recall_at_1"] < 0.07


class Killed(BaseException):
    """What a kill looks like from inside: nothing after the step runs."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder).model.state_dict()


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_a_killed_training_resumes_to_the_figures_of_an_unbroken_one(
    tmp_path: Path, momentum: float
) -> None:
    log = a_log(predictability=0.6)
    hyperparameters = SMALL.model_copy(
        update={"momentum": momentum, "dropout_embedding": 0.2, "dropout_hidden": 0.2}
    )
    schedule = Schedule(epochs=4, patience=0)
    unbroken = fit(log, hyperparameters, schedule, tmp_path / "unbroken")

    done: list[EpochRecord] = []
    steps_of_epoch_3 = 0

    def kill(clicks: int, loss: float) -> None:
        nonlocal steps_of_epoch_3
        steps_of_epoch_3 += len(done) == 2
        if steps_of_epoch_3 == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(log, hyperparameters, schedule, tmp_path / "broken", watch=Watch(kill, done.append))
    half = load_checkpoint(tmp_path / "broken")
    assert not half.info.finished
    resumed = fit(log, hyperparameters, schedule, tmp_path / "broken", resume=half)

    assert resumed.finished
    assert resumed.epoch == unbroken.epoch
    assert resumed.metrics == unbroken.metrics
    assert [r.loss for r in resumed.history] == [r.loss for r in unbroken.history]
    for name, tensor in weights(tmp_path / "unbroken").items():
        assert torch.equal(tensor, weights(tmp_path / "broken")[name])


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    log, schedule = a_log(n_sessions=60), Schedule(epochs=2, patience=0)
    info = fit(log, SMALL, schedule, tmp_path)

    def never(clicks: int, loss: float) -> None:
        raise AssertionError("a step was trained")

    again = fit(
        log, SMALL, schedule, tmp_path, resume=load_checkpoint(tmp_path), watch=Watch(never)
    )
    assert again == info


def test_more_epochs_than_before_go_on_from_the_last_one(tmp_path: Path) -> None:
    log = a_log(n_sessions=60)
    fit(log, SMALL, Schedule(epochs=1, patience=0), tmp_path)
    longer = Schedule(epochs=3, patience=0)
    info = fit(log, SMALL, longer, tmp_path, resume=load_checkpoint(tmp_path))
    assert [record.epoch for record in info.history] == [1, 2, 3]
    assert info.history[-1].loss == fit(log, SMALL, longer, tmp_path / "other").history[-1].loss


def test_another_seed_gives_another_model_and_the_same_seed_the_same(tmp_path: Path) -> None:
    log, schedule = a_log(n_sessions=60, validate=False), Schedule(epochs=1)
    first, same, other = (tmp_path / name for name in ("first", "same", "other"))
    fit(log, SMALL, schedule, first)
    fit(log, SMALL, schedule, same)
    fit(log, SMALL.model_copy(update={"seed": 2}), schedule, other)
    assert torch.equal(weights(first)["item_embedding"], weights(same)["item_embedding"])
    assert not torch.equal(weights(first)["item_embedding"], weights(other)["item_embedding"])


def test_training_stops_after_its_patience_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    # Nothing can be learnt of this log, so the validation is soon as good as it gets by chance.
    log = a_log(predictability=0.0, n_sessions=60)
    info = fit(log, SMALL, Schedule(epochs=50, patience=2), tmp_path)
    recall = [record.metrics["recall_at_20"] for record in info.history]
    assert len(recall) == info.epoch + 2 < 50
    assert recall[info.epoch - 1] == max(recall)
    assert info.metrics == info.history[info.epoch - 1].metrics
    kept = load_checkpoint(tmp_path)
    last = kept.resume_arrays()["item_embedding"]
    assert not np.array_equal(kept.model.item_embedding.detach().numpy(), last)


def test_a_time_budget_ends_the_training_within_an_epoch(tmp_path: Path) -> None:
    log = a_log(n_sessions=600)
    ticks = iter(range(10_000))
    budget = Schedule(epochs=10, time_budget_s=20)
    info = fit(log, SMALL, budget, tmp_path, clock=lambda: float(next(ticks)))
    assert len(info.history) == 1
    assert info.finished
    assert info.metrics, "the last validation still runs"
    assert load_checkpoint(tmp_path).info == info


def test_without_validation_the_last_epoch_is_kept(tmp_path: Path) -> None:
    info = fit(a_log(n_sessions=60, validate=False), SMALL, Schedule(epochs=3), tmp_path)
    assert info.epoch == 3
    assert info.metrics == {}


def test_the_checkpoint_describes_the_training_part(tmp_path: Path) -> None:
    log = a_log(n_sessions=60)
    info: CheckpointInfo = fit(log, SMALL, Schedule(epochs=1), tmp_path)
    assert info.training.sessions == 48
    assert info.training.clicks == 48 * 6
    assert info.idle_timeout_s == 1800
    support = np.bincount(log.train.item_index, minlength=info.training.items)
    assert [item.score for item in info.popular] == sorted(support, reverse=True)


def test_a_checkpoint_of_other_parameters_is_not_resumed(tmp_path: Path) -> None:
    log = a_log(n_sessions=60)
    fit(log, SMALL, Schedule(epochs=1), tmp_path)
    other = SMALL.model_copy(update={"hidden_size": 8})
    with pytest.raises(FitError, match="was trained with hidden_size=32, not 8"):
        fit(log, other, Schedule(epochs=2), tmp_path, resume=load_checkpoint(tmp_path))


def test_a_checkpoint_of_another_log_is_not_resumed(tmp_path: Path) -> None:
    fit(a_log(n_sessions=60), SMALL, Schedule(epochs=1), tmp_path)
    with pytest.raises(
        FitError, match=r"was trained on a different log \(.*sessions 48.*sessions 64"
    ):
        fit(
            a_log(n_sessions=80),
            SMALL,
            Schedule(epochs=2),
            tmp_path,
            resume=load_checkpoint(tmp_path),
        )


def test_a_run_goes_on_with_its_own_reading_of_the_log_alone(tmp_path: Path) -> None:
    log = a_log(n_sessions=60)
    assert log.validation is not None
    fit(log, SMALL, Schedule(epochs=1), tmp_path)
    half = load_checkpoint(tmp_path)
    weights = log.train.target_weight.copy()
    weights[3] = 0.5
    for changed, sentence in (
        (replace(log, idle_timeout_s=600), "idle_timeout_s=1800, not 600"),
        (replace(log, event_types=EventTypes(targets={"buy": 1.0})), "event_types="),
        (replace(log, train=replace(log.train, target_weight=weights)), "validated on different"),
        (replace(log, validation=log.validation.slice(0, 5)), "or validated on different sessions"),
    ):
        with pytest.raises(FitError, match=sentence):
            fit(changed, SMALL, Schedule(epochs=2), tmp_path, resume=half)


def test_a_warm_start_keeps_its_items_and_learns_the_new_ones_faster(tmp_path: Path) -> None:
    clicks = markov_clicks(0.9, n_sessions=500, n_items=40, seed=2)
    old = build_sessions(clicks.filter(pl.col("item_id").cast(pl.Int64) < 30))
    schedule = Schedule(epochs=6)
    fit(TrainingLog(old.sessions, None, old.catalogue, None), SMALL, schedule, tmp_path / "old")
    before = load_checkpoint(tmp_path / "old")

    catalogue = build_catalogue(clicks, old.catalogue)
    sessions = build_sessions(clicks, catalogue).sessions
    log = TrainingLog(sessions.slice(0, 20), sessions.slice(400, 500), catalogue, None)
    once = Schedule(epochs=1)
    warm = fit(log, SMALL, once, tmp_path / "warm", warm_start=before)
    cold = fit(log, SMALL, once, tmp_path / "cold")
    assert warm.metrics["recall_at_1"] > cold.metrics["recall_at_1"] + 0.05
    assert load_checkpoint(tmp_path / "warm").catalogue.item_ids[:30] == before.catalogue.item_ids


def test_a_warm_start_carries_the_moments_and_their_number_of_steps(tmp_path: Path) -> None:
    log, adam = a_log(n_sessions=100), SMALL.model_copy(update={"optimiser": "adam"})
    fit(log, adam, Schedule(epochs=1), tmp_path / "first")
    first = load_checkpoint(tmp_path / "first")
    trainer = Trainer(adam, item_support(log.train, len(log.catalogue)))
    trainer.warm_start(first.resume_arrays() | weights_of(first.model))
    state = trainer.state()
    for name, array in first.resume_arrays().items():
        np.testing.assert_array_equal(state[name], array)
    assert state["steps"] > 1


def test_a_warm_start_with_another_optimiser_carries_the_weights_alone(tmp_path: Path) -> None:
    log = a_log(n_sessions=100)
    fit(log, SMALL, Schedule(epochs=2), tmp_path / "first")
    first = load_checkpoint(tmp_path / "first")
    adam = SMALL.model_copy(update={"optimiser": "adam", "momentum": 0.0, "learning_rate": 0.002})
    fit(log, adam, Schedule(epochs=1), tmp_path / "carried", warm_start=first)
    own = Trainer(adam, item_support(log.train, len(log.catalogue)))
    own.warm_start(weights_of(first.model))
    own.train_epoch(log.train, 1)
    kept = load_checkpoint(tmp_path / "carried").resume_arrays()
    for name, array in own.state().items():
        np.testing.assert_array_equal(kept[name], array)


@pytest.mark.parametrize(("before", "after"), [(0.2, 0.0), (0.0, 0.2)])
def test_a_warm_start_may_change_the_momentum(tmp_path: Path, before: float, after: float) -> None:
    log = a_log(n_sessions=60)
    first, second = (SMALL.model_copy(update={"momentum": m}) for m in (before, after))
    fit(log, first, Schedule(epochs=1), tmp_path / "first")
    warm_start = load_checkpoint(tmp_path / "first")
    fit(log, second, Schedule(epochs=1), tmp_path / "second", warm_start=warm_start)
    assert load_checkpoint(tmp_path / "second").info.finished


def test_a_warm_start_of_another_architecture_is_refused(tmp_path: Path) -> None:
    log = a_log(n_sessions=60)
    fit(log, SMALL, Schedule(epochs=1), tmp_path)
    other = SMALL.model_copy(update={"cell": "lstm"})
    with pytest.raises(FitError, match="has cell=gru, but this training has lstm"):
        fit(log, other, Schedule(), tmp_path / "b", warm_start=load_checkpoint(tmp_path))


def test_a_warm_start_of_other_context_is_refused(tmp_path: Path) -> None:
    log = a_log(n_sessions=60)
    fit(log, SMALL, Schedule(epochs=1), tmp_path)
    gap = ContextField(name="gap", kind="gap", edges_s=(1.0,))
    numbers = np.zeros((log.train.n_clicks, 1), dtype=np.int32)
    other = replace(log, train=replace(log.train, context=numbers), context=(gap,))
    with pytest.raises(FitError, match="different context fields or values"):
        fit(other, SMALL, Schedule(), tmp_path / "b", warm_start=load_checkpoint(tmp_path))


def test_a_planted_context_is_found_and_a_shuffled_one_gives_nothing(tmp_path: Path) -> None:
    """The event of a click says which of two items follows; the item alone cannot."""
    rng = np.random.default_rng(1)
    n_sessions = 2000
    items, event = rng.integers(0, 20, n_sessions), rng.integers(0, 2, n_sessions)
    clicks = pl.DataFrame(
        {
            "session_id": np.repeat(np.arange(n_sessions), 2).astype(str),
            "item_id": np.stack([items, 20 + 2 * items + event], 1).ravel().astype(str),
            "timestamp_ms": np.arange(2 * n_sessions) * 1000,
            "event": np.repeat(event, 2).astype(str),
        }
    )

    def recall(clicks: pl.DataFrame, folder: str) -> float:
        fields = learn_fields(clicks, ["event"])
        indexed = build_sessions(clicks, context=fields)
        log = TrainingLog(
            indexed.sessions.slice(0, 1600),
            indexed.sessions.slice(1600, 2000),
            indexed.catalogue,
            None,
            fields,
        )
        hyperparameters = SMALL.model_copy(update={"input_context": "multiply"})
        info = fit(log, hyperparameters, Schedule(epochs=12, patience=0), tmp_path / folder)
        return info.metrics["recall_at_1"]

    assert recall(clicks, "planted") > 0.8
    shuffled = clicks.with_columns(pl.col("event").shuffle(seed=2))
    assert recall(shuffled, "shuffled") < 0.6  # a coin: 400 predictions, four deviations


def test_a_loss_that_is_no_number_stops_the_training_with_its_parameters(tmp_path: Path) -> None:
    wild = SMALL.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(FitError, match=r"the loss of epoch 1 is .*learning_rate=1e\+30"):
        fit(a_log(n_sessions=60), wild, Schedule(epochs=1), tmp_path)
    assert not (tmp_path / "checkpoint.json").exists()


def test_bpr_max_without_any_negative_is_refused() -> None:
    with pytest.raises(ValueError, match="loss=bpr-max needs negatives"):
        Hyperparameters(loss="bpr-max", batch_size=1, n_negatives=0)
