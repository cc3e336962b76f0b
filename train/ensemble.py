"""Networks of one log with different seeds, combined into one: ``python -m train ensemble``.

In block-diagonal matrices they form an ordinary network whose width is the sum of theirs, which
evaluation, export and the stream treat like any other. Its scores are the sum of theirs. For cosine
models they are the mean, each weighted by the length of its part of the query, which hardly
differs: on Diginetica the plain mean gives .5432/.1873 and this .5436/.1873 (Recall@20, MRR@20).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
from pydantic import Field
from torch import Tensor

from train.command import Settings, TrainError
from train.network.cells import GATES
from train.network.checkpoint import INFO, Checkpoint, load_checkpoint, save_checkpoint, weights_of
from train.network.model import ModelConfig, SessionModel

MAY_DIFFER = {"dropout_embedding", "dropout_hidden", "hidden_size"}

log = structlog.get_logger()


class EnsembleSettings(Settings):
    """Combine networks that were trained with different seeds into one."""

    checkpoints: list[Path] = Field(min_length=2)
    """Folders that fit wrote, separated by commas: same items, same architecture, no context."""
    out: Path
    """Folder of the checkpoint to write."""


def run_ensemble(settings: EnsembleSettings) -> None:
    """Load, combine, write."""
    if (settings.out / INFO).exists():
        raise TrainError(f"{settings.out} already has a checkpoint: choose another --out")
    members = [load_checkpoint(folder) for folder in settings.checkpoints]
    write_ensemble(members, settings.out)
    log.info("checkpoint_written", folder=str(settings.out), members=len(members))


def write_ensemble(members: Sequence[Checkpoint], folder: Path) -> None:
    """Write a checkpoint of all members as one network, with the first one's description.

    It has no figures yet and no accumulators: a warm start can begin from it, --resume cannot.
    Raises TrainError if the members cannot be combined.
    """
    first = members[0]
    for other in members:
        check_member(first, other)
    model = joined([member.model for member in members])
    width = {"hidden_size": model.config.hidden_size}
    changed: dict[str, object] = {
        "model": model.config,
        "hyperparameters": first.info.hyperparameters | width,
        "metrics": {},
        "history": [],
        "finished": True,
        # A mean of scores is as sharp as they are, a sum is not.
        "live": first.info.live if model.config.normalise else None,
        "weights": "weights-ensemble.npz",
        "resume": "resume-ensemble.npz",
    }
    info = first.info.model_copy(update=changed)
    save_checkpoint(folder, info, first.catalogue, weights_of(model), {})


def check_member(first: Checkpoint, other: Checkpoint) -> None:
    """Raise TrainError unless both can be parts of one network."""
    for checkpoint in (first, other):
        if checkpoint.info.model.context:
            raise TrainError(
                f"{checkpoint.folder} has context: only models without context can be combined"
            )
        if checkpoint.info.model.cell == "window":
            raise TrainError(f"{checkpoint.folder} has cell=window, expected a recurrent cell")
    check_same_log(first, other)
    for name in ModelConfig.model_fields.keys() - MAY_DIFFER:
        _check_same(first, other, name, lambda of: of.info.model, "have the same architecture")


def check_same_log(first: Checkpoint, other: Checkpoint) -> None:
    """Raise TrainError unless both know the same items and read clicks in the same way."""
    if first.catalogue.item_ids != other.catalogue.item_ids:
        raise TrainError(
            f"{other.folder} and {first.folder} have different items: use models trained on one log"
        )
    for name in ("idle_timeout_s", "allowed_lateness_s", "event_types"):
        _check_same(first, other, name, lambda of: of.info, "read sessions in the same way")


def _check_same(
    first: Checkpoint, other: Checkpoint, name: str, part: Callable[[Checkpoint], Any], must: str
) -> None:
    found, wanted = (getattr(part(of), name) for of in (other, first))
    if found != wanted:
        raise TrainError(
            f"{other.folder} has {name}={found}, but {first.folder} has {wanted}; all models must "
            f"{must}"
        )


@torch.no_grad()
def joined(models: Sequence[SessionModel]) -> SessionModel:
    """One network of all members' units, in which no unit sees those of another member."""
    config = models[0].config
    width = sum(model.config.hidden_size for model in models)
    model = SessionModel(config.model_copy(update={"hidden_size": width}))
    weights = [dict(member.named_parameters()) for member in models]
    for name, parameter in model.named_parameters():
        parts = [own[name] for own in weights]
        parameter.copy_(_joined(name, parts, config))
    return model.eval()


def _joined(name: str, parts: Sequence[Tensor], config: ModelConfig) -> Tensor:
    if name == "output_bias":
        bias = torch.stack(list(parts))
        return bias.mean(dim=0) if config.normalise else bias.sum(dim=0)
    one_hot = name == "input_embedding" and config.embedding == "one-hot"
    n_gates = GATES[config.cell] if one_hot or name.startswith("layers.") else 1
    side_by_side = name.endswith("_embedding") or parts[0].dim() == 1
    # Gates are packed column-wise in tables and biases, row-wise in matrices.
    gates = zip(*(p.chunk(n_gates, dim=-1 if side_by_side else 0) for p in parts), strict=True)
    if side_by_side:
        return torch.cat([block for gate in gates for block in gate], dim=-1)
    return torch.cat([torch.block_diag(*gate) for gate in gates])  # type: ignore[no-untyped-call]
