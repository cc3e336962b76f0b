"""Items by what they have in common with those already clicked: attributes, no clicks of others.

Attributes become tokens, tokens TF-IDF vectors (Salton & Buckley, 1988), the session the decayed
sum of its items' vectors, and an item's score the cosine of the two.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse  # type: ignore[import-untyped]  # its stubs are a package of their own
from jaxtyping import Float, Float64, Int64

from train.baselines.popularity import tie_break
from train.baselines.rules import TIE_BREAK
from train.command import TrainError
from train.data.sessions import Catalogue
from train.measure.ranking import SessionBatch

N_BINS = 20
"""Bins of a numeric attribute, each with as many items."""


@dataclass(frozen=True, slots=True)
class ContentBased:
    """Items by the cosine of their attributes to those of the session's items."""

    vectors: scipy.sparse.csr_array
    """TF-IDF over attribute tokens, one row of length 1 (or 0) an item."""
    base: Float64[np.ndarray, "N"]
    decay: float
    """What a click counts less with each click after it."""

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """Cosines up to a factor of the session's own, equal ones by support."""
        profile = np.zeros((len(batch.lengths), self.vectors.shape[1]))
        for prefix in batch.steps():
            b = len(prefix)
            profile[:b] *= self.decay
            profile[:b] += self.vectors[prefix[:, -1]].toarray()
            yield np.ascontiguousarray((self.vectors @ profile[:b].T).T) + self.base


def read_items(path: Path) -> pl.DataFrame:
    """A table of items, tab-separated with ItemId first, every column as text.

    Raises TrainError for a file that is missing, unreadable or without ItemId.
    """
    try:
        items = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TrainError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if "ItemId" not in items.columns:
        raise TrainError(f"{path} has no column ItemId, only {', '.join(items.columns)}")
    return items


def content_based(
    items: pl.DataFrame,
    catalogue: Catalogue,
    support: Int64[np.ndarray, "N"],
    *,
    numeric: Sequence[str] = (),
    decay: float = 0.8,
) -> ContentBased:
    """Content-based lists from a table with ItemId and attributes.

    The words of a column are its tokens; `numeric` columns have one of 20 bins instead. An item
    that the table lacks has no attributes: it is listed by support, after all that match.
    Raises TrainError for a numeric column that the table lacks or whose values are not numbers.
    """
    tokens = _tokens(items, numeric)
    rows = pl.DataFrame({"ItemId": catalogue.item_ids, "row": np.arange(len(catalogue))})
    counts = tokens.join(rows, on="ItemId").group_by("row", "token").len()
    token = counts["token"].rank("dense").to_numpy().astype(np.int64) - 1
    n_tokens = int(token.max(initial=-1)) + 1
    frequency = np.bincount(token, minlength=n_tokens)
    weight = counts["len"].to_numpy() * np.log((1 + len(catalogue)) / frequency[token])
    row = counts["row"].to_numpy()
    norm = np.sqrt(np.bincount(row, weights=weight**2, minlength=len(catalogue)))
    vectors = scipy.sparse.csr_array(
        (weight / norm[row], (row, token)), shape=(len(catalogue), n_tokens)
    )
    return ContentBased(vectors=vectors, base=TIE_BREAK * tie_break(support), decay=decay)


def _tokens(items: pl.DataFrame, numeric: Sequence[str]) -> pl.DataFrame:
    """ItemId and token, a row for each; a token is told from another column's by its name."""
    parts = [pl.DataFrame(schema={"ItemId": pl.String, "token": pl.String})]
    for name in numeric:
        if name not in items.columns:
            raise TrainError(f"no numeric column {name!r} among {', '.join(items.columns)}")
    for name in items.columns:
        if name == "ItemId":
            continue
        text = _bins(items[name]) if name in numeric else items[name]
        words = pl.DataFrame({"ItemId": items["ItemId"], "word": text.str.split(" ")})
        told = words.explode("word").drop_nulls()
        parts.append(told.select("ItemId", token=pl.format("{}={}", pl.lit(name), "word")))
    return pl.concat(parts)


def _bins(values: pl.Series) -> pl.Series:
    try:
        number = values.cast(pl.Float64)
    except pl.exceptions.InvalidOperationError:
        raise TrainError(
            f"{values.name!r} is declared numeric but has values that are not numbers"
        ) from None
    known = number.drop_nulls().to_numpy()
    edges = np.unique(np.quantile(known, np.arange(1, N_BINS) / N_BINS)) if len(known) else known
    bins = pl.Series(values.name, np.searchsorted(edges, number.to_numpy(), side="right"))
    return bins.set(number.is_null(), None).cast(pl.String)
