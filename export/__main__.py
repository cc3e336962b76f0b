"""``python -m export``: a training checkpoint in, a verified bundle out."""

import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
import structlog
import torch
from jaxtyping import Int64
from pydantic import PositiveInt, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from export.graph import OPSET, GRULayerWeights, encode_graph, rank_graph
from export.parity import ParityError, check_parity, random_sessions
from stream.bundle import (
    Bundle,
    BundleError,
    Manifest,
    Metrics,
    Parity,
    PopularItem,
    TrainingData,
    write_bundle,
)
from stream.scorer import OnnxScorer
from train.checkpoint import Checkpoint, CheckpointError, load_checkpoint, weights_of
from train.clicks import ClickLogError, Columns, read_clicks
from train.sessions import build_sessions

PARITY_SESSIONS = 1000

log = structlog.get_logger()


class ExportConfig(BaseSettings):
    """Turn a checkpoint into the bundle that a worker serves, and print the bundle's folder."""

    model_config = SettingsConfigDict(
        env_prefix="EXPORT_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_prog_name="python -m export",
        use_attribute_docstrings=True,
    )
    checkpoint: Path
    """Folder that python -m train fit wrote."""
    out: Path = Path("bundles")
    """Folder that holds one folder for each bundle."""
    clicks: Path | None = None
    """Click log whose newest 1,000 sessions prove the bundle; default: drawn at random."""
    columns: Columns = Columns()
    """How that log names its columns."""
    n_recommendations: PositiveInt = 20
    """Length of the lists that the bundle's graph gives."""


def export_bundle(
    checkpoint: Checkpoint, root: Path, k: int, sessions: list[Int64[np.ndarray, "_T"]]
) -> Path:
    """The folder of the bundle below ``root`` that serves the checkpoint's best model.

    ``sessions`` are replayed through the very graphs and scorer that production runs. Raises
    ParityError or BundleError, and then nothing is written.
    """
    info, model = checkpoint.info, checkpoint.model
    if k > info.model.n_items:
        raise BundleError(f"n_recommendations is {k}, the catalogue has {info.model.n_items} items")
    manifest = Manifest(
        architecture=info.architecture,
        hidden_size=info.model.hidden_size,
        n_layers=info.model.n_layers,
        n_items=info.model.n_items,
        n_recommendations=k,
        idle_timeout_s=info.idle_timeout_s,
        opset=OPSET,
        training=TrainingData(**info.training.model_dump()),
        metrics=Metrics(info.protocol, info.metrics) if info.metrics else None,
        parity=Parity(0, 0, 0.0, 0),
        popular=[PopularItem(item.item_index, item.score) for item in info.popular[:k]],
    )
    weights = weights_of(model)
    layers = [
        GRULayerWeights(*(weights[f"layers.{n}.{name}"] for name in GRULayerWeights._fields))
        for n in range(info.model.n_layers)
    ]
    with tempfile.TemporaryDirectory() as graphs:
        encode, rank = Path(graphs, "encode.onnx"), Path(graphs, "rank.onnx")
        onnx.save(encode_graph(model.input_table.detach().numpy(), layers), encode)
        onnx.save(rank_graph(weights["item_embedding"], weights["output_bias"], k), rank)
        catalogue = checkpoint.catalogue
        staged = Bundle(manifest, catalogue.item_ids, catalogue.index, encode, rank)
        parity = check_parity(model, OnnxScorer(staged), sessions)
        log.info("parity_checked", **msgspec.structs.asdict(parity))
        manifest = msgspec.structs.replace(manifest, parity=parity)
        return write_bundle(root, manifest, catalogue.item_ids, encode, rank)


def parity_sessions(config: ExportConfig, checkpoint: Checkpoint) -> list[Int64[np.ndarray, "_T"]]:
    """1,000 sessions: the newest of the log where one is named, the others drawn at random."""
    catalogue = checkpoint.catalogue
    if config.clicks is None:
        return random_sessions(PARITY_SESSIONS, len(catalogue), seed=0)
    idle_timeout_s = checkpoint.info.idle_timeout_s
    clicks = read_clicks(config.clicks, config.columns, idle_timeout_s=idle_timeout_s).clicks
    newest = build_sessions(clicks, catalogue).sessions.items()[-PARITY_SESSIONS:]
    return newest + random_sessions(PARITY_SESSIONS - len(newest), len(catalogue), seed=0)


def main() -> int:
    """Exit code 0 and the folder on stdout, or 2 and one sentence on stderr."""
    # stdout is for the folder alone: BUNDLE=$(python -m export ...)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        config = CliApp.run(ExportConfig)
    except ValidationError as error:
        for found in error.errors():
            print(f"{'.'.join(map(str, found['loc']))}: {found['msg']}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # seconds of work; a worker beside it keeps its core
    try:
        checkpoint = load_checkpoint(config.checkpoint)
        sessions = parity_sessions(config, checkpoint)
        folder = export_bundle(checkpoint, config.out, config.n_recommendations, sessions)
    except (BundleError, CheckpointError, ClickLogError, ParityError) as error:
        print(error, file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
