"""The grid of experiments, its runs on a tiny shop, what is kept of them, and their tables."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench.lab import experiments
from bench.lab.experiments import (
    Budget,
    ExperimentSettings,
    append_line,
    chosen,
    load_lines,
    plan,
    ranks_path,
    run_missing,
)
from bench.lab.grid import BASE, DATASETS, SYNTHETIC, DataSet, Setting, Variant, variants
from bench.lab.run import (
    Line,
    Parts,
    build_logs,
    key_of,
    measure,
    shortened,
    shuffle_context,
    widen,
)
from bench.lab.tables import (
    GONE,
    PAGES,
    ROWS,
    Kept,
    TablesSettings,
    load_rows,
    measure_rows,
    merged,
    render,
    run,
    write_rows,
)
from tests.unit.train.building import ranks_from
from train.command import TrainError
from train.data.clicks import split_by_time
from train.data.context import MISSING
from train.data.sessions import Catalogue
from train.data.synthetic import SyntheticConfig, generate_synthetic
from train.fit.loop import Schedule
from train.measure.predictor import ModelPredictor
from train.measure.ranking import rank_targets
from train.measure.significance import estimate
from train.network.model import ModelConfig, SessionModel

TINY = DataSet(
    SYNTHETIC,
    {
        "embedding": "separate",
        "hidden_size": 8,
        "n_negatives": 16,
        "batch_size": 32,
        "learning_rate": 0.1,
    },
    Schedule(epochs=1),
    seeds=(1, 2),
    input_context=("event_type",),
)
VARIANTS = [Variant("base", "base", BASE), Variant("cell", "gru", BASE)]
VARIANTS.append(Variant("cell", "rnn", Setting({"cell": "rnn"}), ({}, {"learning_rate": 0.2})))
DIVERGES = Setting({"optimiser": "sgd", "learning_rate": 1e38})


@pytest.fixture(scope="module")
def parts() -> Parts:
    known, test = split_by_time(generate_synthetic(1000, SyntheticConfig(seed=1, n_items=240)), 0.2)
    return Parts(*split_by_time(known, 0.2), test)


@pytest.fixture
def tiny(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "load_parts", lambda data: parts)
    monkeypatch.setattr(experiments, "variants", lambda data: VARIANTS)
    monkeypatch.setattr("bench.lab.tables.variants", lambda data: VARIANTS)


def line_of(setting: Setting, seed: int, recall: float) -> Line:
    return {"key": key_of(TINY, setting), "seed": seed, "validation": {"recall_at_20": recall}}


@pytest.mark.parametrize("data", DATASETS.values(), ids=DATASETS)
def test_every_setting_of_the_grid_can_be_trained(data: DataSet) -> None:
    for variant in variants(data):
        for setting in variant.settings:
            assert setting.hyperparameters(data, 3).seed == 3
            assert set(setting.shuffled) <= set(setting.context)


def test_a_key_says_what_differs_from_the_base() -> None:
    assert key_of(TINY, Setting({"cell": "gru"})) == key_of(TINY, BASE) == "base"
    setting = Setting({"n_layers": 2, "cell": "rnn"}, ("hour", "gap"), ("gap",), 2.0, refit=True)
    assert key_of(TINY, setting) == (
        "cell=rnn context=hour,gap last_days=2 n_layers=2 refit shuffled=gap"
    )


def test_runs_of_another_base_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    append_line(file, TINY, {"key": "base", "seed": 1})
    assert load_lines(file, TINY) == [{"key": "base", "seed": 1}]
    wider = replace(TINY, own={**TINY.own, "hidden_size": 16})
    with pytest.raises(TrainError, match=r"runs of another base .*'hidden_size': 16"):
        load_lines(file, wider)


@pytest.mark.parametrize("data", DATASETS.values(), ids=DATASETS)
def test_the_kept_runs_are_those_of_the_grid(data: DataSet) -> None:
    lines = load_lines(experiments.RUNS / f"{data.name}.jsonl", data)
    assert [run for run in plan(data, lines) if run.seed == 1] == []
    runs = {(line["key"], line["seed"]) for line in lines}
    rows = load_rows(ROWS / f"{data.name}.jsonl")
    assert {(row["key"], seed) for row in rows for seed in row.get("seeds", ())} <= runs


def test_seed_one_of_everything_comes_first_and_chooses_for_the_others(tiny: None) -> None:
    lines: list[Line] = []
    runs = []
    for _, setting, seed in plan(TINY, lines):
        runs.append((setting.changes, seed))
        lines.append(line_of(setting, seed, recall=setting.changes.get("learning_rate", 0.1)))
    tries = [{"cell": "rnn"}, {"cell": "rnn", "learning_rate": 0.2}]
    assert runs == [({}, 1), (tries[0], 1), (tries[1], 1), ({}, 2), (tries[1], 2)]
    assert list(plan(TINY, lines)) == []
    assert [seed for _, _, seed in plan(TINY, lines, seeds=[7], only=["base"])] == [7]


def test_a_training_that_failed_is_never_chosen(tiny: None) -> None:
    first, second = VARIANTS[2].settings
    failed = {"key": key_of(TINY, second), "seed": 1, "failed": "the loss is nan"}
    assert chosen(TINY, VARIANTS[2], [line_of(first, 1, 0.0), failed]) == first


def test_runs_are_kept_and_not_repeated(
    tiny: None, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_of_the_grid = [*VARIANTS, Variant("cell", "gru too fast", DIVERGES)]
    monkeypatch.setattr(experiments, "variants", lambda data: rows_of_the_grid)
    monkeypatch.setattr("bench.lab.tables.variants", lambda data: rows_of_the_grid)
    settings, ranks = ExperimentSettings(datasets=[SYNTHETIC]), tmp_path / "ranks"
    file = tmp_path / "synthetic.jsonl"
    assert run_missing(TINY, settings, Budget(None), tmp_path, ranks)
    text = file.read_text()
    lines = load_lines(file, TINY)
    assert len(lines) == 7
    assert run_missing(TINY, settings, Budget(None), tmp_path, ranks)
    assert file.read_text() == text

    monkeypatch.setattr("bench.lab.tables.load_parts", lambda data: parts)
    measured = list(measure_rows(Kept(TINY, lines, ranks)))
    assert [row["factor"] for row in measured] == ["cell"] * 3
    base, rnn, _ = measured
    of_base = [line["test"]["mrr_at_20"] for line in lines if line["key"] == base["key"]]
    assert base["key"] == "base" and "difference" not in base["mrr_at_20"]
    assert base["mrr_at_20"]["value"] == pytest.approx(np.mean(of_base), abs=1e-5)
    assert base["mrr_at_20"]["least"] == min(of_base)
    difference = rnn["mrr_at_20"]["difference"]["value"]
    assert rnn["mrr_at_20"]["value"] - base["mrr_at_20"]["value"] == pytest.approx(
        difference, abs=2e-5
    )
    assert set(rnn["tried"]) <= {"learning_rate"}

    gone = rnn | {"name": "a cell that is gone"}
    write_rows(tmp_path / "rows.jsonl", [gone, base | {"seconds": 0.0}], measured)
    rows = load_rows(tmp_path / "rows.jsonl")
    assert rows == [gone, *measured]
    page = render(TINY, rows, [])
    assert "| gru too fast | diverges |" in page
    assert "# synthetic, test" in page and "| **gru** (base) | " in page
    assert f"{base['mrr_at_20']['value']:.4f}".removeprefix("0") in page
    living, _, last = page.partition(f"## Code gone, last in {GONE}")
    assert "| a cell that is gone" in last and "a cell that is gone" not in living

    one = ranks_path(TINY, "base", 2, ranks)
    one.unlink()
    assert list(measure_rows(Kept(TINY, lines, ranks))) == [measured[2]], "no ranks, no row"
    again = ExperimentSettings(datasets=[SYNTHETIC], ranks=True)
    assert run_missing(TINY, again, Budget(None), tmp_path, ranks)
    assert one.exists()
    figures = [{**line, "seconds": 0, "clicks_per_second": 0} for line in lines]
    repeated = load_lines(file, TINY)
    assert [{**line, "seconds": 0, "clicks_per_second": 0} for line in repeated] == figures


def test_no_run_begins_that_would_outlast_the_budget(tiny: None, tmp_path: Path) -> None:
    settings = ExperimentSettings(datasets=[SYNTHETIC])
    budget = Budget(minutes=1)
    budget.spend(seconds=61)
    assert not run_missing(TINY, settings, budget, tmp_path, tmp_path)
    assert not (tmp_path / "synthetic.jsonl").exists()


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    append_line(file, TINY, {"key": "base", "seed": 1})
    with file.open("a") as end:
        end.write('{"seed": 2, "ke')
    assert [line["seed"] for line in load_lines(file, TINY)] == [1]
    append_line(file, TINY, {"key": "base", "seed": 3})
    assert [line["seed"] for line in load_lines(file, TINY)] == [1, 3]


def test_a_training_that_ends_in_no_number_says_so_in_its_line(parts: Parts) -> None:
    line = measure(TINY, DIVERGES, 1, build_logs(parts, TINY, DIVERGES))
    assert "not a finite number" in line["failed"]
    assert "validation" not in line


def test_shuffled_context_keeps_the_values_and_who_says_nothing(parts: Parts) -> None:
    setting = Setting(context=("event_type", "gap"), shuffled=("gap",))
    plain = build_logs(parts, TINY, replace(setting, shuffled=())).training.train
    sessions = build_logs(parts, TINY, setting).training.train
    np.testing.assert_array_equal(sessions.context[:, 0], plain.context[:, 0])
    before, after = plain.context[:, 1], sessions.context[:, 1]
    np.testing.assert_array_equal(before == MISSING, after == MISSING)
    np.testing.assert_array_equal(np.sort(before), np.sort(after))
    assert np.mean(before != after) > 0.3
    assert np.array_equal(shuffle_context(plain, [], 1).context, plain.context)


def test_a_shorter_period_ranks_the_same_predictions(parts: Parts) -> None:
    whole = build_logs(parts, TINY, BASE)
    recent = build_logs(parts, TINY, Setting(last_days=2))
    assert len(recent.training.train) < len(whole.training.train)
    assert len(recent.training.catalogue) < len(whole.training.catalogue)
    for split, indexed in whole.splits.items():
        same = recent.splits[split].sessions.item_index
        np.testing.assert_array_equal(same, indexed.sessions.item_index)


def test_a_refit_learns_from_everything_before_the_test(parts: Parts) -> None:
    data = replace(TINY, refit=True)
    logs = build_logs(parts, data, BASE)
    assert logs.again is not None
    assert logs.again.training.train.n_clicks == len(parts.train) + len(parts.validation)
    line = measure(data, BASE, 1, logs)
    assert line["test"]["predictions"] == sum(logs.again.splits["test"].sessions.lengths - 1)
    assert data.frozen != TINY.frozen


def test_a_refit_setting_is_asked_what_the_others_are(parts: Parts) -> None:
    assert parts.test is not None
    unseen = parts.test.filter(pl.col("item_id") == parts.test["item_id"][5])
    item = unseen["item_id"][0]
    older = parts.train.filter(pl.col("item_id") != item)
    late = Parts(older, pl.concat([parts.validation, unseen[:1]]), parts.test)
    plain, again = build_logs(late, TINY, BASE), build_logs(late, TINY, Setting(refit=True)).again
    assert again is not None
    assert item in again.catalogue.index
    assert item not in plain.catalogue.index
    assert again.training.train.n_clicks > plain.training.train.n_clicks
    ids = [
        np.array(logs.catalogue.item_ids)[logs.splits["test"].sessions.item_index]
        for logs in (plain, again)
    ]
    np.testing.assert_array_equal(ids[0], ids[1])


def test_a_widened_model_ranks_its_own_items_alike_and_the_others_last(parts: Parts) -> None:
    logs = build_logs(parts, TINY, BASE)
    own = Catalogue(logs.catalogue.item_ids[10:])
    model = SessionModel(ModelConfig(n_items=len(own), hidden_size=8, embedding="separate")).eval()
    wide = widen(model, own, logs.catalogue)
    sessions = logs.splits["test"].sessions
    ranks = rank_targets(ModelPredictor(wide), sessions, len(logs.catalogue))
    unknown = ranks.target < 10
    assert unknown.any()
    assert set(ranks.rank[unknown]) == {len(logs.catalogue)}
    assert ranks.rank[~unknown].max() <= len(own)
    assert widen(model, own, own) is model


def test_ranks_are_kept_as_far_as_a_list_goes() -> None:
    rank = np.array([1, 20, 21, 4, 43_000])
    np.testing.assert_array_equal(shortened(rank), [1, 20, 21, 4, 21])


def test_merged_seeds_are_right_as_often_as_their_mean() -> None:
    both = merged([ranks_from([1, 30]), ranks_from([30, 30])])
    assert estimate(both, ["recall_at_20"])[0].figures["recall_at_20"].value == 0.25
    np.testing.assert_array_equal(both.session, np.sort(both.session))


def test_the_pages_say_what_the_kept_rows_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorted(page.stem for page in PAGES.iterdir()) == sorted(DATASETS)
    assert sorted(rows.stem for rows in ROWS.iterdir()) == sorted(DATASETS)
    run(TablesSettings(check=True))  # raises where a page is not current
    monkeypatch.setattr("bench.lab.tables.PAGES", tmp_path)
    with pytest.raises(TrainError, match="not current"):
        run(TablesSettings(check=True))
