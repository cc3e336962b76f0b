"""What is kept of measuring one model on one log: all that tests and reports are made of.

One `.npz` per evaluation: tables, intervals, slices and paired tests come from it without running
a model again.
"""

import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import polars as pl
from jaxtyping import Int64
from pydantic import ValidationError

from train.command import Settings, TrainError
from train.data.context import texts
from train.data.health import Health
from train.data.sessions import TARGET_WEIGHT, Indexed, Sessions
from train.folders import replacing
from train.measure.metrics import NOTHING_LOST, Lost, figures, list_figures
from train.measure.ranking import PROTOCOL, Predictor, Ranks, rank_targets
from train.measure.significance import Difference, compare
from train.measure.slices import first_clicks
from train.network.checkpoint import EpochRecord

SUFFIX = ".evaluation.npz"
_NO_TEXT = (pl.Binary, pl.Duration, pl.Object)
_ROWS_AT_ONCE = 1_000_000  # their texts are tens of megabytes
_NULL = 2**32 - 1  # longer than any text


class LogCounts(Settings):
    """The log a model was measured on."""

    name: str
    """Data set and part of it, as the report calls it."""
    sessions: int
    clicks: int
    first_timestamp_ms: int
    last_timestamp_ms: int
    dropped_clicks: int = 0
    """Clicks on items unseen in training."""
    dropped_sessions: int = 0
    """Sessions with fewer than two clicks once those are gone."""
    lost: Lost = NOTHING_LOST
    """Predictions that were dropped with them."""
    content_hash: str = ""
    """Of the times, items and further columns of all clicks: tells logs of the same name apart."""
    targets_hash: str = ""
    """Of the predicted items in their order, however a catalogue numbers them; empty in old
    files."""

    @property
    def identity(self) -> tuple[str, str]:
        """What evaluations of the same log have in common."""
        return self.name, self.content_hash


class Training(Settings):
    """The training of a model that has epochs."""

    epoch: int
    """The epoch that was measured."""
    history: list[EpochRecord]
    health: Health | None = None
    """Of the log that was learnt from."""


class EvaluationInfo(Settings):
    """Everything of an evaluation that is not an array."""

    format: int = 1
    model: str
    log: LogCounts
    protocol: str = PROTOCOL
    seconds: float
    """What ranking and listing took."""
    training: Training | None = None
    first_click: dict[str, float]
    """Figures of the first click of every session, answered by popularity."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model measured on one log."""

    info: EvaluationInfo
    ranks: Ranks
    support: Int64[np.ndarray, "N"]
    """Clicks on every item in training."""
    listed: Int64[np.ndarray, "N"]
    """Top-20 lists that hold the item; all 0 in old files that did not count them."""

    def figures(self) -> dict[str, float]:
        """Every figure of the protocol, and those of the lists where they were counted."""
        result = figures(self.ranks, self.info.log.lost)
        return result | (list_figures(self.listed, self.support) if self.listed.any() else {})


def describe_log(
    name: str, indexed: Indexed, lost: Lost = NOTHING_LOST, clicks: pl.DataFrame | None = None
) -> LogCounts:
    """The counts of a log under its name; `lost` comes from `lost_predictions`. `clicks`, the log
    before anything was dropped, tells it from others of the same name."""
    sessions = indexed.sessions
    return LogCounts(
        name=name,
        sessions=len(sessions),
        clicks=sessions.n_clicks,
        first_timestamp_ms=int(sessions.timestamp_ms.min()) if len(sessions) else 0,
        last_timestamp_ms=int(sessions.timestamp_ms.max()) if len(sessions) else 0,
        dropped_clicks=indexed.dropped_clicks,
        dropped_sessions=indexed.dropped_sessions,
        lost=lost,
        content_hash="" if clicks is None else _content_hash(clicks),
        targets_hash=_targets_hash(indexed),
    )


def _content_hash(clicks: pl.DataFrame) -> str:
    """The same for every model: how sessions are cut and targets weighted depends on it."""
    content = hashlib.sha256(np.ascontiguousarray(clicks["timestamp_ms"]).tobytes())
    for name in sorted({*clicks.columns} - {"session_id", "timestamp_ms", TARGET_WEIGHT}):
        dtype = clicks.schema[name]
        if not dtype.is_nested() and dtype not in _NO_TEXT:
            content.update(name.encode())
            for rows in clicks.select(name).iter_slices(_ROWS_AT_ONCE):
                content.update(_bytes_of(texts(rows[name])))
    return content.hexdigest()[:16]


def _targets_hash(indexed: Indexed) -> str:
    items = pl.Series(indexed.catalogue.item_ids, dtype=pl.String)
    targets = items[indexed.sessions.item_index[indexed.sessions.is_target]]
    return _digest(_bytes_of(targets))


def _bytes_of(values: pl.Series) -> bytes:
    # Polars' own hashes change with its version.
    lengths = values.str.len_bytes().fill_null(_NULL).to_numpy().tobytes()
    return lengths + str(values.str.join().item()).encode()


def evaluate(
    model: str,
    predictor: Predictor,
    sessions: Sessions,
    log: LogCounts,
    support: Int64[np.ndarray, "N"],
    *,
    training: Training | None = None,
) -> Evaluation:
    """Rank the sessions' clicks and keep everything, what the lists show included."""
    listed = np.zeros(len(support), dtype=np.int64)
    begin = time.perf_counter()
    ranks = rank_targets(predictor, sessions, len(support), listed)
    info = EvaluationInfo(
        model=model,
        log=log,
        seconds=time.perf_counter() - begin,
        training=training,
        first_click=figures(first_clicks(sessions, support)),
    )
    return Evaluation(info, ranks, support, listed)


def compare_kept(a: Evaluation, b: Evaluation, metric: str) -> Difference:
    """`compare` of two models whose catalogues may number the same items differently. Raises
    ValueError where they did not predict the same clicks."""
    found, expected = a.info.log.targets_hash, b.info.log.targets_hash
    if not (found and expected):
        return compare(a.ranks, b.ranks, metric)
    if found != expected:
        raise ValueError("the two models predicted different items")
    return compare(a.ranks, replace(b.ranks, target=a.ranks.target), metric)


def evaluation_path(folder: Path, model: str) -> Path:
    """Where a folder keeps the evaluation of a model."""
    return folder / (re.sub(r"[^\w.=+-]+", "_", model) + SUFFIX)


def check_replaceable(folder: Path, model: str, log: LogCounts, training: Training | None) -> None:
    """Raise TrainError where the folder keeps a different model of that name, or another log's. Two
    networks count as the same if their epochs agree in every digit."""
    path = evaluation_path(folder, model)
    if not path.exists():
        return
    kept = load_evaluation(path).info
    if kept.log.identity != log.identity:
        raise TrainError(
            f"{path} was measured on a different log, {kept.log.name}: choose another --out"
        )
    if kept.training != training:
        raise TrainError(f"{path} belongs to a different checkpoint: choose another --out")


def save_evaluation(folder: Path, evaluation: Evaluation) -> Path:
    """Write `<model>.evaluation.npz`, replacing an older one, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    # Narrow types compress to a third; `load_evaluation` widens them again.
    arrays = {f.name: getattr(evaluation.ranks, f.name) for f in fields(Ranks)}
    arrays |= {"support": evaluation.support, "listed": evaluation.listed}
    narrow = {
        n: a.astype(np.min_scalar_type(a.max(initial=0))) if a.dtype == np.int64 else a
        for n, a in arrays.items()
    }
    path = evaluation_path(folder, evaluation.info.model)
    info = np.array(evaluation.info.model_dump_json())
    with replacing(path) as partial, partial.open("wb") as target:
        np.savez_compressed(target, allow_pickle=False, info=info, **narrow)
    return path


def load_evaluation(path: Path) -> Evaluation:
    """The evaluation in a file. Raises TrainError for a file that is not one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        info = EvaluationInfo.model_validate_json(str(arrays.pop("info")))
        wide = {n: a.astype(np.int64) if a.dtype.kind in "iu" else a for n, a in arrays.items()}
        support, listed = wide.pop("support"), wide.pop("listed")
        return Evaluation(info, Ranks(**wide), support, listed)
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise TrainError(f"{path} is not an evaluation: {reason}") from error


def load_evaluations(folders: Sequence[Path]) -> list[Evaluation]:
    """All evaluations in and below the folders, by path.

    Two of the same model and log are told apart by the names of their folders. A model without a
    training that gave the same answers next to several checkpoints, as a baseline does, is one.
    Raises TrainError for a folder without evaluations.
    """
    found: dict[Path, Evaluation] = {}
    for folder in folders:
        paths = sorted(folder.rglob(f"*{SUFFIX}"))
        if not paths:
            raise TrainError(
                f"{folder} contains no *{SUFFIX} file; create one with "
                "`python -m train evaluate --out`"
            )
        found |= {path.resolve(): load_evaluation(path) for path in paths}
    first_of: dict[object, Path] = {}
    for path, kept in found.items():
        first_of.setdefault(path if kept.info.training else _answers(kept), path)
    same_model = defaultdict(list)
    for path in first_of.values():
        info = found[path].info
        same_model[*info.log.identity, info.model].append(path)
    labels = {path: name for paths in same_model.values() for path, name in _labels(paths).items()}
    return [
        replace(kept, info=kept.info.model_copy(update={"model": kept.info.model + labels[path]}))
        for path, kept in found.items()
        if path in labels
    ]


def _answers(kept: Evaluation) -> tuple[object, ...]:
    """Equal for models that gave the same ranks to the same clicks, however items are numbered.
    Their lists may differ: the items' numbers decide which of equal scores are in them."""
    ranks, log = kept.ranks, kept.info.log
    target = ranks.target[: 0 if log.targets_hash else None]
    arrays = (
        ranks.session,
        ranks.position,
        ranks.weight,
        target,
        ranks.rank,
        np.sort(kept.support),
    )
    hashes = (_digest(array.tobytes()) for array in arrays)
    return *log.identity, kept.info.model, log.targets_hash, bool(kept.listed.any()), *hashes


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _labels(paths: Sequence[Path]) -> dict[Path, str]:
    """The last folders of each path, as many as tell them apart; nothing for a single one."""
    if len(paths) == 1:
        return {paths[0]: ""}
    for depth in range(2, max(len(path.parts) for path in paths) + 1):
        folders = {path: "/".join(path.parts[-depth:-1]) for path in paths}
        if len(set(folders.values())) == len(paths):
            break
    return {path: f" ({folder})" for path, folder in folders.items()}
