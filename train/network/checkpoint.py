"""A training run on disk: what exporting its best model and resuming from its last epoch need.

`checkpoint.json` names the other files and is replaced last, atomically: a run killed while writing
leaves the previous epoch. Arrays are `.npz` read with `allow_pickle=False`, so a checkpoint from an
untrusted source can be wrong but cannot run code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict, JsonValue, model_validator

from train.command import TrainError, load_json
from train.data.filters import EventTypes
from train.data.health import Health
from train.data.sessions import Catalogue
from train.folders import replacing
from train.network.model import ModelConfig, SessionModel

INFO = "checkpoint.json"
ITEMS = "items.txt"
POPULAR_ITEMS = 1000
"""Length of the popularity list; a bundle takes its first K."""

DROPPED = {
    "window": 3,
    "feed_forward": False,
    "context_size": 16,
    "peek_context": False,
    "logq": True,
    "weight_decay": 0.0,
    "decay": "constant",
    "warmup_epochs": 0.0,
    "clip_norm": 0.0,
}
"""Fields of checkpoints up to version 0.1.0, and the only values that are still supported."""

Arrays = Mapping[str, np.ndarray]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PopularItem(_Record):
    """An item and its support (clicks in the training log)."""

    item_index: int
    score: float


class TrainingData(_Record):
    """The log the weights came from, validation part excluded."""

    first_timestamp_ms: int
    last_timestamp_ms: int
    clicks: int
    sessions: int
    items: int


class EpochRecord(_Record):
    """One pass over the training sessions."""

    epoch: int
    loss: float
    clicks_per_second: float
    seconds: float
    metrics: dict[str, float]
    """Of the validation sessions, under `CheckpointInfo.protocol`; empty without a validation."""


class Live(_Record):
    """How lists learn from the stream, fitted on sessions that the network has not learnt from.

    time_scale_s, popularity_half_life_s, excludes_seen: as in ``stream.live.rules.Rules``. bias,
    sharpness, weights: as in ``stream.live.blend.Blend``.
    """

    time_scale_s: int
    popularity_half_life_s: int
    excludes_seen: bool
    bias: float
    sharpness: float
    weights: list[list[float]]


class CheckpointInfo(_Record):
    """Everything of a checkpoint that is not an array or an item id."""

    format: Literal[2] = 2
    model: ModelConfig
    hyperparameters: dict[str, JsonValue]
    training: TrainingData
    idle_timeout_s: int | None
    """The gap at which training sessions were cut; null if only a session column separated them."""
    allowed_lateness_s: int = 600
    """How late a click may arrive in the stream."""
    event_types: EventTypes = EventTypes()
    """Which types of event advanced a session in training."""
    max_session_length: int = 0
    """Longer sessions were dropped before training; 0: none."""
    health: Health | None = None
    """Of the log that was learnt from."""
    content_hash: str = ""
    """Of the sessions trained and validated on; a run resumes only on the same ones."""
    epoch: int
    """The epoch `weights` were taken after, counted from 1."""
    protocol: str
    metrics: dict[str, float]
    history: list[EpochRecord]
    finished: bool
    """False while epochs remain to be trained, as after a kill."""
    popular: list[PopularItem]
    live: Live | None = None
    """None: not fitted, and lists are the network's alone."""
    weights: str
    resume: str
    """File of the arrays a run goes on from: weights, accumulators and velocities after the last
    epoch in `history`. Random numbers need no file: each epoch draws from (seed, epoch)."""

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, given: Any) -> Any:
        """Translate what version 0.1.0 wrote."""
        if not (isinstance(given, dict) and isinstance(given.get("model"), dict)):
            return given
        model = _without_dropped(given["model"])
        for name in DROPPED.keys() & model.keys():
            raise ValueError(
                f"model.{name} is {model[name]!r}, expected {DROPPED[name]!r}: this version no "
                "longer has that setting"
            )
        hyperparameters = _without_dropped(given.get("hyperparameters") or {})
        others = {name: given[name] for name in given.keys() - {"epochs"}}
        return {**others, "model": model, "hyperparameters": hyperparameters}


def _without_dropped(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as they are today; a dropped one stays where its value is no longer supported."""
    kept = {n: v for n, v in fields.items() if n not in DROPPED or DROPPED[n] != v}
    temperature = kept.pop("temperature", None)
    if isinstance(kept.get("normalise"), bool):  # a switch, and the factor in another field
        kept["normalise"] = float(temperature or 1.0) if kept["normalise"] else 0.0
    return kept


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint; `model` is in evaluation mode."""

    folder: Path
    info: CheckpointInfo
    catalogue: Catalogue
    model: SessionModel

    def resume_arrays(self) -> dict[str, np.ndarray]:
        """Arrays of the trainer after the last epoch in `info.history`."""
        return _read_arrays(self.folder / self.info.resume)


def popular_items(support: Int64[np.ndarray, "N"]) -> list[PopularItem]:
    """The most clicked items, best first; equal support in order of item_index."""
    order = np.argsort(-support, kind="stable")[:POPULAR_ITEMS]
    return [PopularItem(item_index=int(i), score=float(support[i])) for i in order]


def save_checkpoint(
    folder: Path, info: CheckpointInfo, catalogue: Catalogue, weights: Arrays, resume: Arrays
) -> None:
    """Write or advance the checkpoint in `folder`; readers see either the old or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, arrays in ((info.weights, weights), (info.resume, resume)):
        with replacing(folder / name) as partial, partial.open("wb") as target:
            np.savez(target, allow_pickle=False, **arrays)
    items = "".join(f"{item_id}\n" for item_id in catalogue.item_ids)
    _write_text(folder / ITEMS, items)
    save_info(folder, info)
    for file in folder.glob("*.npz"):
        if file.name not in (info.weights, info.resume):
            file.unlink()


def save_info(folder: Path, info: CheckpointInfo) -> None:
    """Replace what the checkpoint in `folder` says of itself; its arrays and items stay."""
    _write_text(folder / INFO, info.model_dump_json(indent=1))


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def load_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, its parts checked against each other. Raises TrainError if there
    is none, or if its parts contradict each other."""
    if not (folder / INFO).exists():
        raise TrainError(f"{folder} contains no checkpoint: {INFO} is missing")
    info = load_json(CheckpointInfo, folder / INFO, "")
    # Split at "\n" alone: str.splitlines would also cut ids at U+0085 or U+2028.
    try:
        item_ids = (folder / ITEMS).read_text("utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainError(f"{folder / ITEMS} cannot be read: {error}") from error
    if len(item_ids) != info.model.n_items:
        raise TrainError(
            f"{folder / ITEMS} has {len(item_ids)} lines, but {INFO} says "
            f"n_items={info.model.n_items}"
        )

    model = SessionModel(info.model)
    weights = _read_arrays(folder / info.weights)
    check_arrays(folder / info.weights, weights, model.state_dict())
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise TrainError(f"{folder / info.weights}: {name} contains NaN or infinity")
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return Checkpoint(folder, info, Catalogue(item_ids), model.eval())


def check_arrays(source: Path | str, arrays: Arrays, expected: Mapping[str, torch.Tensor]) -> None:
    """Raise TrainError unless the arrays have the expected names, shapes and types."""
    if arrays.keys() != expected.keys():
        raise TrainError(f"{source} contains {sorted(arrays)}, expected {sorted(expected)}")
    for name, tensor in expected.items():
        if arrays[name].shape != tuple(tensor.shape):
            raise TrainError(
                f"{source}: {name} has shape {arrays[name].shape}, expected {tuple(tensor.shape)}"
            )
        dtype = str(tensor.dtype).removeprefix("torch.")
        if arrays[name].dtype != dtype:
            raise TrainError(f"{source}: {name} is {arrays[name].dtype}, expected {dtype}")


def weights_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """A copy of the model's weights by name."""
    return {name: tensor.cpu().numpy().copy() for name, tensor in model.state_dict().items()}


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise TrainError(f"{file} cannot be read: {error}") from error
