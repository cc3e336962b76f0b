"""The bundles of the rows: one exported bundle with parts of its lists taken out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from export.__main__ import ExportConfig, export_bundle, parity_sessions
from export.encode import bundle_graphs
from stream.model.bundle import Bundle, Live, load_bundle, write_bundle
from train.command import TrainError
from train.network.checkpoint import Checkpoint

Row = Literal["static", "bias", "counts", "live"]
ROWS: tuple[Row, ...] = ("static", "bias", "counts", "live")
K = 20


def exported(checkpoint: Checkpoint, root: Path) -> Bundle:
    """The bundle that ``python -m export`` writes."""
    sessions = parity_sessions(ExportConfig(checkpoint=checkpoint.folder), checkpoint)
    return load_bundle(export_bundle(checkpoint, root, K, sessions))


def live_of(row: Row, live: Live) -> Live | None:
    """What a row's manifest says of learning from the stream.

    static: nothing. bias: the network alone, with its bias and what it does with seen items.
    counts: the view alone.
    """
    weights: Sequence[Sequence[float]] = live.weights
    match row:
        case "static":
            return None
        case "bias":
            weights = [[0.0] * (len(of_class) - 1) + [1.0] for of_class in weights]
        case "counts":
            weights = [[*of_class[:-1], 0.0] for of_class in weights]
    return msgspec.structs.replace(live, weights=weights)


def write_variant(row: Row, bundle: Bundle, checkpoint: Checkpoint, root: Path) -> Bundle:
    """A row's bundle. Sessions go on over any gap, as every next click counts.

    Raises TrainError where the bundle has nothing for the row.
    """
    live = bundle.manifest.live
    if live is None and row != "static":
        raise TrainError(
            f"{checkpoint.folder} does not say how lists learn from the stream, which the row "
            f"{row} needs: train it again, or choose --rows static"
        )
    graphs = bundle.encode(), bundle.rank(), bundle.rank_int8 and bundle.rank_int8()
    if live is not None and row == "static":
        # A live bundle's graphs list the candidates of a blend, and not K items.
        encode, rank, int8 = bundle_graphs(checkpoint.model, K).serialized()
        graphs = encode, rank, int8 if bundle.rank_int8 else None
    manifest = msgspec.structs.replace(
        bundle.manifest, live=live_of(row, live) if live else None, idle_timeout_s=None
    )
    return load_bundle(write_bundle(root, manifest, bundle.item_ids, *graphs))
