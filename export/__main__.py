"""``python -m export``: a training checkpoint in, a verified bundle out."""

import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import structlog
import torch
from pydantic import Field, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from export.encode import bundle_graphs
from export.graph import OPSET
from export.parity import ParitySession, check_parity, random_sessions
from stream.errors import StreamError
from stream.live.rules import NETWORK_BEST
from stream.model.bundle import (
    MIN_OVERLAP,
    Bundle,
    Live,
    Manifest,
    Metrics,
    Parity,
    PopularItem,
    TrainingData,
    check_context,
    write_bundle,
)
from stream.model.scorer import OnnxScorer, probe_bias
from train.command import TrainError, run_command
from train.data.sessions import build_sessions
from train.evaluate import read_as_trained
from train.fit.training_log import ColumnNames
from train.network.cells import WINDOW
from train.network.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint
from train.network.model import ModelConfig

PARITY_SESSIONS = 1000

log = structlog.get_logger()


class ExportConfig(BaseSettings):
    """Turn a checkpoint into the bundle that a worker serves, and print the bundle's folder."""

    model_config = SettingsConfigDict(
        env_prefix="NEXTCLICK_EXPORT_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_prog_name="python -m export",
        use_attribute_docstrings=True,
    )
    checkpoint: Path
    """Folder that python -m train fit wrote."""
    out: Path = Path("bundles")
    """Folder of bundles, one folder each."""
    clicks: Path | None = None
    """Click log whose newest 1,000 sessions verify the bundle. Unset: random sessions."""
    columns: ColumnNames = Field(default={})
    """Names of that log's columns, as for fit: public, or session=sid,item=sku,time=ts."""
    n_recommendations: PositiveInt = 20
    """Length of the lists of recommendations."""


def export_bundle(
    checkpoint: Checkpoint, root: Path, k: int, sessions: list[ParitySession]
) -> Path:
    """The folder of the bundle below ``root`` that serves the checkpoint's best model.

    ``sessions`` are replayed through the very graphs and scorer that production runs. Raises
    TrainError or StreamError, and then nothing is written.
    """
    info, model = checkpoint.info, checkpoint.model
    config = info.model
    if k > config.n_items:
        raise StreamError(
            f"n_recommendations is {k}, but the catalogue has only {config.n_items} items"
        )
    context = list(config.context)
    check_context(checkpoint.folder, context)
    manifest = Manifest(
        architecture=describe(config),
        hidden_size=config.hidden_size,
        n_layers=config.n_layers,
        state_size=model.state_size,
        query_size=config.hidden_size,
        n_items=config.n_items,
        n_recommendations=k,
        idle_timeout_s=info.idle_timeout_s,
        context=context,
        opset=OPSET,
        training=TrainingData(
            **info.training.model_dump(), max_session_length=info.max_session_length
        ),
        metrics=Metrics(info.protocol, info.metrics) if info.metrics else None,
        parity=Parity(0, 0, 0.0, 0.0, 0),
        popular=[PopularItem(item.item_index, item.score) for item in info.popular[:k]],
        allowed_lateness_s=info.allowed_lateness_s,
        event_types=tuple(info.event_types.inputs or ()),
        live=_live(info, k),
    )
    encode, rank, rank_int8 = bundle_graphs(
        model, manifest.n_candidates, manifest.takes_bias
    ).serialized()
    catalogue = checkpoint.catalogue

    def scorer(graph: bytes) -> OnnxScorer:
        items = catalogue.item_ids, catalogue.index
        return OnnxScorer(Bundle(manifest, *items, lambda: encode, lambda: graph))

    int8 = scorer(rank_int8) if rank_int8 else None
    bias = probe_bias(manifest)
    parity = check_parity(model, scorer(rank), sessions, int8, bias)
    if int8 and parity.int8_overlap < MIN_OVERLAP:
        found = round(parity.int8_overlap, 5)
        log.warning("int8_left_out", overlap=found, expected=MIN_OVERLAP)
        parity, rank_int8 = msgspec.structs.replace(parity, int8_overlap=0.0), None
    log.info("parity_checked", **msgspec.structs.asdict(parity))
    manifest = msgspec.structs.replace(manifest, parity=parity)
    return write_bundle(root, manifest, catalogue.item_ids, encode, rank, rank_int8)


def _live(info: CheckpointInfo, k: int) -> Live | None:
    if info.live is None:
        return None
    # As many as the weights were fitted with, but no fewer than are published.
    n_candidates = max(k, min(NETWORK_BEST, info.model.n_items))
    return Live(**info.live.model_dump(), n_candidates=n_candidates)


def describe(config: ModelConfig) -> str:
    """The kind of model in words, for people who look at a bundle or its metric."""
    parts: list[str] = [config.cell]
    if config.n_layers > 1:
        parts.append(f"{config.n_layers} layers")
    if config.cell == "window":
        parts.append(f"{WINDOW} clicks")
    parts.append(f"{config.embedding} embedding")
    parts += ["residual"] * config.residual + ["cosine scores"] * bool(config.normalise)
    for way in dict.fromkeys((config.input_context, config.transition_context)):
        names = [config.context[column].name for column in config.columns(way)]
        if names:
            parts.append(f"{way} context {' '.join(names)}")
    return ", ".join(parts)


def parity_sessions(config: ExportConfig, checkpoint: Checkpoint) -> list[ParitySession]:
    """1,000 sessions: the newest of the log if one is given, filled up with random ones."""
    catalogue, fields = checkpoint.catalogue, checkpoint.info.model.context
    newest = []
    if config.clicks is not None:
        clicks = read_as_trained(config.clicks, config.columns, checkpoint.info)
        sessions = build_sessions(clicks, catalogue, fields).sessions
        first_click_of = sessions.start.tolist()[-PARITY_SESSIONS - 1 :]
        newest = [
            ParitySession(sessions.item_index[a:b], sessions.context[a:b])
            for a, b in pairwise(first_click_of)
        ]
        if not newest:
            raise TrainError(
                f"{config.clicks} has no session with at least two clicks on items known to "
                f"{config.checkpoint}: expected the log the checkpoint was trained on, or a newer "
                "one"
            )
    n_random = PARITY_SESSIONS - len(newest)
    sizes = [field.size for field in fields]
    return newest + random_sessions(n_random, len(catalogue), sizes, seed=0)


def run_export(config: ExportConfig) -> None:
    """Write the bundle and print its folder."""
    torch.set_num_threads(1)  # seconds of work; a worker beside it keeps its core
    checkpoint = load_checkpoint(config.checkpoint)
    sessions = parity_sessions(config, checkpoint)
    # stdout is for the folder alone: BUNDLE=$(python -m export ...)
    print(export_bundle(checkpoint, config.out, config.n_recommendations, sessions))


def main() -> int:
    """Exit code 0 and the folder on stdout, or 2 and one sentence on stderr."""
    return run_command(ExportConfig, run_export, errors=(StreamError,))


if __name__ == "__main__":
    sys.exit(main())
