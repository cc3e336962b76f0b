import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.unit.train.building import markov_clicks, sessions_of
from train.data.health import examine
from train.data.order import number_ids
from train.measure.metrics import Lost
from train.measure.ranking import ranks_of
from train.measure.results import (
    Evaluation,
    EvaluationInfo,
    LogCounts,
    Training,
    save_evaluation,
)
from train.network.checkpoint import EpochRecord
from train.report.page import ReportSettings, run_report, write_report

N_ITEMS = 50
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Balance(HTMLParser):
    """Raises where a tag is closed that is not the last one opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def made(model: str, worst_rank: int, log: str = "toy", n_sessions: int = 40) -> Evaluation:
    """A model that ranks a log's targets between 1 and `worst_rank`."""
    rng = np.random.default_rng(1)
    sessions = sessions_of([rng.integers(0, N_ITEMS, 4).tolist() for _ in range(n_sessions)])
    rank = np.random.default_rng(worst_rank).integers(1, worst_rank + 1, sessions.n_clicks)
    counts = LogCounts(
        name=log,
        sessions=n_sessions,
        clicks=4 * n_sessions,
        first_timestamp_ms=1_396_300_000_000,
        last_timestamp_ms=1_396_900_000_000,
        dropped_clicks=7,
        lost=Lost(5, 5.0),
    )
    first_click = {"recall_at_20": 0.1, "mrr_at_20": 0.02}
    return Evaluation(
        EvaluationInfo(model=model, log=counts, seconds=2.0, first_click=first_click),
        ranks_of(sessions, rank),
        support=np.arange(N_ITEMS, 0, -1),
        listed=np.arange(N_ITEMS),
    )


def page_of(tmp_path: Path, *evaluations: Evaluation) -> str:
    write_report(tmp_path / "out" / "report.html", evaluations)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    parser = Balance()
    parser.feed(page)
    assert not parser.open
    assert not re.search(r"\bnan\b|<small>\u2013", page)
    return page


def test_the_page_needs_no_network_and_no_script(tmp_path: Path) -> None:
    page = page_of(tmp_path, made("gru", 20), made("pop", 500))
    assert not re.search(r"https?:|<script|src=|url\(|@import|<link|<iframe", page)


def test_models_stand_the_best_first_with_their_figures(tmp_path: Path) -> None:
    worse, better = made("pop", 200), made("gru", 15)
    page = page_of(tmp_path, worse, better)
    names = re.findall(r'<th scope="row">(?:<svg.*?</svg>)?(\w+)</th>', page)
    assert names[:2] == ["gru", "pop"]
    for evaluation in (worse, better):
        figures = evaluation.figures()
        for name in ("recall_at_20", "mrr_at_5", "novel_ndcg_at_10", "with_unknown_recall_at_20"):
            assert f"{figures[name]:.4f}".removeprefix("0") in page
    assert "1 April 2014" not in page
    assert "31 March 2014 to 7 April 2014" in page
    assert "<b>gru</b> lists the next click among its first 20 in 100.0 %" in page


def test_a_model_is_tested_against_the_best(tmp_path: Path) -> None:
    page = page_of(tmp_path, made("gru", 15), made("pop", 200))
    against = page[page.index("Against the best") : page.index("Where they differ")]
    assert "\N{MINUS SIGN}." in against
    assert "&lt; .001" in against
    assert "other clicks were predicted" not in against


def test_models_of_other_predictions_are_not_tested(tmp_path: Path) -> None:
    other = made("gru", 15)
    fewer = replace(other, ranks=other.ranks.of(other.ranks.position > 1))
    page = page_of(tmp_path, made("pop", 200), fewer)
    assert page.count("other clicks were predicted") == 2  # in Recall and in MRR


def test_models_that_number_items_in_other_ways_are_tested(tmp_path: Path) -> None:
    def hashed(evaluation: Evaluation, targets_hash: str) -> Evaluation:
        log = evaluation.info.log.model_copy(update={"targets_hash": targets_hash})
        return replace(evaluation, info=evaluation.info.model_copy(update={"log": log}))

    gru, pop = made("gru", 15), made("pop", 200)
    pop = replace(pop, ranks=replace(pop.ranks, target=N_ITEMS - 1 - pop.ranks.target))
    page = page_of(tmp_path, hashed(gru, "a"), hashed(pop, "a"))
    assert "other clicks were predicted" not in page
    page = page_of(tmp_path, hashed(gru, "a"), hashed(pop, "b"))
    assert page.count("other clicks were predicted") == 2  # in Recall and in MRR


def test_predictions_of_a_part_are_each_models_own(tmp_path: Path) -> None:
    gru, pop = made("gru", 15), made("pop", 200)
    page = page_of(tmp_path, gru, replace(pop, support=pop.support[::-1]))
    by_length, by_popularity = page.split("<h4>")[3:5]
    assert '<th scope="row">predictions</th>' in by_length
    assert 'class="note"' in by_length
    of_model = [
        re.findall(r"<td>(\d+)</td>", by_popularity.split(f"predictions of {name}</th>")[1])[:4]
        for name in ("gru", "pop")
    ]
    assert of_model[0] != of_model[1]
    assert [sum(map(int, counts)) for counts in of_model] == [120, 120]
    assert 'class="note"' not in by_popularity
    assert "where every model has as many; the tables count each model's own;" in page
    assert "The models know other items" not in page


def test_counts_of_a_log_say_whose_they_are_where_catalogues_differ(tmp_path: Path) -> None:
    gru, pop = made("gru", 15), made("pop", 200)
    log = gru.info.log.model_copy(update={"dropped_clicks": 0, "lost": Lost(0, 0.0)})
    page = page_of(tmp_path, replace(gru, info=gru.info.model_copy(update={"log": log})), pop)
    assert "it is that of gru." in page
    assert "With those predictions counted as misses" in page
    assert "Every clicked item was in the training" not in page


def test_one_model_alone_has_a_page(tmp_path: Path) -> None:
    assert "Against the best" not in page_of(tmp_path, made("gru", 15))


def test_a_model_without_predictions_has_a_page(tmp_path: Path) -> None:
    page_of(tmp_path, made("gru", 15, n_sessions=0), made("pop", 15, n_sessions=0))


def test_several_logs_have_one_table_over_all_with_gaps_where_a_model_was_not_measured(
    tmp_path: Path,
) -> None:
    both = [made("gru", 15, log="a"), made("gru", 30, log="b"), made("pop", 300, log="b")]
    page = page_of(tmp_path, *both)
    overview = page[page.index("All logs") : page.index('id="log-1"')]
    gru, pop = re.findall(r"<tr><th scope=.row.>.*?</tr>", overview, re.DOTALL)
    assert len(re.findall(r"\.\d{4}|1\.0000", gru)) == 4
    assert pop.count("\N{EN DASH}") == 2
    assert "All logs" not in page_of(tmp_path, both[0])


def test_two_logs_of_one_name_are_two(tmp_path: Path) -> None:
    one, other = made("gru", 15), made("gru", 30, n_sessions=50)
    log = other.info.log.model_copy(update={"content_hash": "b"})
    page = page_of(tmp_path, one, replace(other, info=other.info.model_copy(update={"log": log})))
    assert 'id="log-2"' in page


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    page = page_of(tmp_path, made("<b>&", 15, log='a "log" <i>'), made("pop", 20, log="other"))
    assert "&lt;b&gt;&amp;" in page
    assert "<b>&<" not in page
    assert "a &#34;log&#34; &lt;i&gt;" in page


def test_only_the_best_are_plotted_where_there_are_many_and_all_stand_in_the_tables(
    tmp_path: Path,
) -> None:
    page = page_of(tmp_path, *(made(f"model{n}", 10 + 10 * n) for n in range(8)))
    plots = "".join(re.findall(r'<svg class="plot".*?</svg>', page, re.DOTALL))
    assert "model0," in plots
    assert "model5," in plots
    assert "model7" not in plots
    assert "model7" in page


def test_a_training_is_plotted_with_the_epoch_that_was_measured(tmp_path: Path) -> None:
    history = [
        EpochRecord(
            epoch=n,
            loss=1 / n,
            clicks_per_second=1.0,
            seconds=1.0,
            metrics={"recall_at_20": 0.1 * n, "mrr_at_20": 0.05 * n},
        )
        for n in (1, 2, 3)
    ]
    gru = made("gru", 15)
    training = Training(epoch=2, history=history)
    trained = replace(gru, info=gru.info.model_copy(update={"training": training}))
    assert "Training loss" not in page_of(tmp_path, gru)
    page = page_of(tmp_path, trained, made("pop", 200))
    assert page.count('class="ring"') == 3  # loss, Recall and MRR
    assert "gru, 2 epoch: .2000" in page


def test_models_that_learnt_from_one_log_share_its_health(tmp_path: Path) -> None:
    health = examine(markov_clicks(0.9, 100, 30, seed=1).pipe(number_ids))
    learnt = Training(epoch=1, history=[], health=health)
    models = [
        replace(found, info=found.info.model_copy(update={"training": learnt}))
        for found in (made("gru", 15), made("lstm", 20))
    ]
    page = page_of(tmp_path, *models, made("pop", 200))
    assert page.count("What gru, lstm learnt from</h3>") == page.count("Nothing looks wrong") == 1


def test_the_command_writes_the_page_of_its_folders(tmp_path: Path) -> None:
    for model in ("gru", "pop"):
        save_evaluation(tmp_path / "runs" / model, made(model, 30))
    settings = ReportSettings(runs=[tmp_path / "runs"], out=tmp_path / "x.html", title="T <1>")
    run_report(settings)
    assert "<h1>T &lt;1&gt;</h1>" in (tmp_path / "x.html").read_text("utf-8")
    with pytest.raises(ValueError, match="at least 1 item"):
        ReportSettings(runs=[])
