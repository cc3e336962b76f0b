"""Networks of one log that differ in their seed, put together as one: ``python -m train ensemble``.

Side by side in block-diagonal matrices they are an ordinary network whose width is the sum of
theirs, and everything that takes a checkpoint takes it: evaluation, export, the stream. Its scores
are the sum of theirs. Those of cosine models are their mean, each weighed by the length of its part
of the query, which hardly differs: on Diginetica the plain mean gives .5432/.1873 and this
.5436/.1873 (Recall@20 and MRR@20).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import structlog
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from train.network.cells import GATES
from train.network.checkpoint import (
    INFO,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    weights_of,
)
from train.network.model import ModelConfig, SessionModel

MAY_DIFFER = {"dropout_embedding", "dropout_hidden", "hidden_size"}

log = structlog.get_logger()


class EnsembleSettings(BaseModel):
    """Put networks that were trained with different seeds together as one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    checkpoints: list[Path] = Field(min_length=2)
    """Folders that fit wrote, with commas between: of the same items and architecture, without
    context."""
    out: Path
    """Folder of the checkpoint to write."""


def run_ensemble(settings: EnsembleSettings) -> None:
    """Load, put together, write."""
    if (settings.out / INFO).exists():
        raise CheckpointError(f"{settings.out} holds a checkpoint: another --out keeps it")
    members = [load_checkpoint(folder) for folder in settings.checkpoints]
    write_ensemble(members, settings.out)
    log.info("checkpoint_written", folder=str(settings.out), members=len(members))


def write_ensemble(members: Sequence[Checkpoint], folder: Path) -> None:
    """A checkpoint of all members as one network, with what is told of the first beside it.

    It has no figures yet, and no accumulators: a warm start can go on from it, --resume cannot.
    Raises CheckpointError if the members do not go together.
    """
    first = members[0]
    for other in members:
        check_member(first, other)
    model = joined([member.model for member in members])
    info = first.info.model_copy(
        update={
            "model": model.config,
            "hyperparameters": first.info.hyperparameters
            | {"hidden_size": model.config.hidden_size},
            "metrics": {},
            "history": [],
            "finished": True,
            "weights": "weights-ensemble.npz",
            "resume": "resume-ensemble.npz",
        }
    )
    save_checkpoint(folder, info, first.catalogue, weights_of(model), {})


def check_member(first: Checkpoint, other: Checkpoint) -> None:
    """Raise CheckpointError unless both can be parts of one network."""
    for checkpoint in (first, other):
        if checkpoint.info.model.context:
            raise CheckpointError(
                f"{checkpoint.folder} is a model with context: expected models without, "
                "whose layers see nothing that they would have to share"
            )
        if checkpoint.info.model.cell == "window":
            raise CheckpointError(f"{checkpoint.folder} has cell=window, expected a recurrent one")
    if first.catalogue.item_ids != other.catalogue.item_ids:
        raise CheckpointError(
            f"{other.folder} has other items than {first.folder}: expected models of the same log"
        )
    for name in ("idle_timeout_s", "event_types"):
        found, expected = getattr(other.info, name), getattr(first.info, name)
        if found != expected:
            raise CheckpointError(
                f"{other.folder} has {name}={found}, {first.folder} {expected}: "
                "expected sessions that are read alike"
            )
    for name in ModelConfig.__dataclass_fields__.keys() - MAY_DIFFER:
        found, expected = getattr(other.info.model, name), getattr(first.info.model, name)
        if found != expected:
            raise CheckpointError(
                f"{other.folder} has {name}={found}, {first.folder} {expected}: "
                "expected the same architecture"
            )


@torch.no_grad()
def joined(models: Sequence[SessionModel]) -> SessionModel:
    """One network of the members' units, none of which sees those of another member."""
    config = models[0].config
    width = sum(model.config.hidden_size for model in models)
    model = SessionModel(replace(config, hidden_size=width))
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
    # Gates are packed side by side in rows and biases, one above the other in matrices.
    gates = zip(*(p.chunk(n_gates, dim=-1 if side_by_side else 0) for p in parts), strict=True)
    if side_by_side:
        return torch.cat([block for gate in gates for block in gate], dim=-1)
    return torch.cat([torch.block_diag(*gate) for gate in gates])  # type: ignore[no-untyped-call]
