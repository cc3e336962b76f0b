"""What a bias is worth whose counts are one partition's: ``python -m bench.live.partitions``.

Lists would then depend on the partition's log alone, and a click would need no view; each
partition counts a sample of the clicks. With the networks and the settings of
``python -m bench.live.offline``, which comes first.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import polars as pl
import structlog

from bench.datasets import folder_of
from bench.live.__main__ import BUILD, FIGURES
from bench.live.offline import Run, summary
from bench.provenance import RESULTS, keep, provenance
from bench.serving.runs import Runs
from stream.live.rules import Rules
from train.command import Settings, TrainError, run_command
from train.evaluate import read_as_trained
from train.live.command import PROTOCOL
from train.live.fit import STATIC, figures
from train.live.network import Network
from train.live.replay import bias_ranks, network_for, one_after_the_other
from train.network.checkpoint import load_checkpoint

log = structlog.get_logger()


class PartitionsSettings(Settings):
    """Measure the bias with the counts of all clicks, and with those of the partition alone."""

    partitions: tuple[int, ...] = (4, 16, 64)
    """Of the clicks topic; sessions are spread over them by their id."""
    fitted: Path = RESULTS / "prequential.json"
    """What python -m bench.live.offline has written: the logs, seeds and settings."""
    checkpoints: Path = Path("build/prequential")
    """Folder of its networks: LOG-SEED."""
    out: Path = RESULTS / "partitions.json"
    """File of the result."""


def run(settings: PartitionsSettings) -> None:
    runs = Runs(BUILD / f"partitions-{provenance()['commit']}.jsonl")
    try:
        chosen = json.loads(settings.fitted.read_text())["chosen"]
    except OSError as error:
        raise TrainError(f"--fitted: {error}; run python -m bench.live.offline first") from None
    found = []
    for of_run in chosen:
        which = {"log": of_run["log"], "seed": of_run["seed"]}
        what = {**which, "partitions": settings.partitions}
        found.append(runs.row(what, partial(measure, of_run, settings)))
    result = summary(found)
    keep(settings.out, {"protocol": PROTOCOL, **result})
    for row in result["rows"]:
        gain = ", ".join(f"{row[f'{figure}_gain']:+.4f}" for figure in FIGURES)
        print(f"{row['log']:>16} {row['name']:>18}  over the network {gain}")
    print(f"written to {settings.out}")


def measure(chosen: dict[str, Any], settings: PartitionsSettings) -> Run:
    """The figures of the network alone, and of its bias by the number of partitions."""
    name, seed = chosen["log"], chosen["seed"]
    checkpoint = load_checkpoint(settings.checkpoints / f"{name}-{seed}")
    parts = (folder_of(name) / f"{part}.tsv.gz" for part in ("train", "test"))
    read = (read_as_trained(path, {"preset": "public"}, checkpoint.info) for path in parts)
    clicks = one_after_the_other(*read)
    network = network_for(checkpoint, clicks)
    rules = Rules(
        1000 * chosen["time_scale_s"],
        1000 * chosen["popularity_half_life_s"],
        chosen["excludes_seen"],
    )
    ranks = {STATIC: _ranks(clicks, network, rules, 0.0, 1)}
    for n in (1, *settings.partitions):
        ranks[f"bias of {n}"] = _ranks(clicks, network, rules, chosen["bias"], n)
    found = {of: figures(of_list) for of, of_list in ranks.items()}
    log.info("measured", log=name, seed=seed, **{of: row[FIGURES[0]] for of, row in found.items()})
    only_chosen = {key: chosen[key] for key in chosen.keys() - {"log", "seed"}}
    return {"predictions": len(ranks[STATIC]), "chosen": only_chosen, "figures": found}


def _ranks(clicks: pl.DataFrame, network: Network, rules: Rules, bias: float, n: int) -> list[int]:
    """Of all questions, partition by partition."""
    names = clicks["session_id"].cast(pl.String)
    of_session = {name: crc32(name.encode()) % n for name in names.unique().to_list()}
    partition = names.replace_strict(of_session, return_dtype=pl.Int64).alias("partition")
    parts = clicks.with_columns(partition).partition_by("partition")
    asked = (bias_ranks(part, network, [rules], [bias]) for part in parts)
    return [rank for of_part in asked for rank in of_part[rules, bias]]


if __name__ == "__main__":
    sys.exit(run_command(PartitionsSettings, run))
