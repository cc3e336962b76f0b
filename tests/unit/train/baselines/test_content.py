from math import log, sqrt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.unit.train.baselines.asking import best_first, scores_after
from train.baselines.content import content_based, read_items
from train.command import TrainError
from train.data.sessions import Catalogue

CATALOGUE = Catalogue(["a", "b", "c", "d", "e"])
SUPPORT = np.array([5, 4, 3, 2, 1])
ITEMS = pl.DataFrame(
    {
        "ItemId": ["a", "b", "c", "d"],
        "Words": ["red shoe", "red hat", "blue shoe", "green tent"],
    }
)
TIES = 1e-8


def test_a_score_is_the_cosine_of_tfidf_vectors() -> None:
    # red and shoe stand in two items of 5, the other words in one: idf ln(6 / 2) and ln 6.
    common, rare = log(3) ** 2, log(6) ** 2
    scores = scores_after(content_based(ITEMS, CATALOGUE, SUPPORT), [0])[0]
    cosine = common / sqrt(2 * common) / sqrt(common + rare)
    assert scores == pytest.approx([1, cosine, cosine, 0, 0], abs=TIES)


def test_equal_cosines_and_items_without_attributes_are_ordered_by_support() -> None:
    assert best_first(content_based(ITEMS, CATALOGUE, SUPPORT), [0]) == [[0, 1, 2, 3, 4]]
    assert best_first(content_based(ITEMS, CATALOGUE, SUPPORT), [4]) == [[0, 1, 2, 3, 4]]


def test_the_profile_is_the_decayed_sum_of_the_clicked_items() -> None:
    predictor = content_based(ITEMS, CATALOGUE, SUPPORT, decay=0.5)
    alone = [scores_after(predictor, [item])[0] for item in range(4)]
    after_three = scores_after(predictor, [3, 1, 2])[2]
    assert after_three == pytest.approx(alone[2] + alone[1] / 2 + alone[3] / 4, abs=TIES)


def test_numbers_share_a_token_with_their_neighbours() -> None:
    items = pl.DataFrame(
        {
            "ItemId": [str(n) for n in range(100)],
            "Price": [str(n + 0.5) for n in range(99)] + [None],
        }
    )
    catalogue = Catalogue(items["ItemId"].to_list())
    predictor = content_based(items, catalogue, np.arange(100, 0, -1), numeric=["Price"])
    scores = scores_after(predictor, [52])[0]
    same_bin = np.flatnonzero(scores > 0.5)
    assert 52 in same_bin
    assert 4 <= len(same_bin) <= 6  # 20 bins of 99 items
    assert scores_after(predictor, [99])[0].max() < TIES  # no price, no token


def test_wrong_tables_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"nothing\.tsv cannot be read"):
        read_items(tmp_path / "nothing.tsv")
    (tmp_path / "items.tsv").write_text("Item\tArea\nx\t1\n")
    with pytest.raises(TrainError, match="has no column ItemId, only Item, Area"):
        read_items(tmp_path / "items.tsv")
    with pytest.raises(TrainError, match="no numeric column 'Price' among ItemId, Words"):
        content_based(ITEMS, CATALOGUE, SUPPORT, numeric=["Price"])
    with pytest.raises(TrainError, match="'Words' is declared numeric"):
        content_based(ITEMS, CATALOGUE, SUPPORT, numeric=["Words"])


def test_a_table_is_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "items.tsv").write_text("ItemId\tArea\n007\t1\n8\t\n")
    assert read_items(tmp_path / "items.tsv").rows() == [("007", "1"), ("8", None)]
