"""Hyperparameters found by search on a log's validation sessions, by the log's name.

docs/experiments.md tells how they were found and what did not help. Each stands for a published
figure, so it names all that was searched for, whatever the defaults are.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from train.network.hyperparameters import FineTuning, Hyperparameters
from train.pairs import from_pairs

BESIDES = {"epochs", "patience", "context", "utc_offset_s"}
"""What a preset may set besides hyperparameters."""
OF_OPTIMISER = {"learning_rate", "momentum", "initial_accumulator"}

LARGE_LOG = 500_000
"""Training clicks from which a log counts as large."""

BPR_MAX: dict[str, Any] = {
    "hidden_size": 100,
    "embedding": "shared",
    "normalise": 0.0,
    "loss": "bpr-max",
    "bpreg": 1.0,
    "elu": 0.5,
    "sample_alpha": 0.5,
    "order": "random",
    "bptt": 2,
    "dropout_hidden": 0.2,
    "learning_rate": 0.05,
    "momentum": 0.0,
    "initial_accumulator": 0.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # One click a step and 32 sessions: .6846/.3647 after 9 epochs; two clicks: .6918/.3670.
    "rsc15-100k": {**BPR_MAX, "n_negatives": 2048, "batch_size": 16, "dropout_embedding": 0.5},
    # Half the units of the authors' published network: twice as many overfit two fifths of the log.
    "diginetica": {
        "order": "time",  # the newest sessions last: on two fifths of the log .4902 became .4998
        "hidden_size": 256,
        "embedding": "shared",
        "normalise": 16.0,
        "loss": "cross-entropy",
        "n_negatives": 2048,
        "sample_alpha": 0.3,
        "batch_size": 64,
        "bptt": 2,
        "dropout_embedding": 0.4,
        "dropout_hidden": 0.2,
        "learning_rate": 0.035,
        "momentum": 0.15,
        # From 0, four epochs on two fifths of the log reach .5014/.1750; from this, .5080/.1780.
        "initial_accumulator": 1e-3,
        "precision": "bfloat16",
        "epochs": 5,
        "patience": 0,
    },
    # The demo's shop: chosen on its training days alone, the last of them held out. Its chains run
    # one way, so that an input table of its own learns faster; on real logs it loses.
    "synthetic": {
        **BPR_MAX,
        "embedding": "separate",
        "n_negatives": 512,
        "batch_size": 32,
        "bptt": 1,
        "dropout_embedding": 0.1,
        "dropout_hidden": 0.1,
        "epochs": 5,
        "patience": 0,
    },
    # One click a step and 64 sessions: .6140/.2816; two clicks: .6295/.2895.
    "foursquare-nyc": {
        **BPR_MAX,
        "n_negatives": 512,
        "batch_size": 32,
        "dropout_embedding": 0.3,
        "epochs": 8,
    },
}


class _Unseen(FineTuning):
    """What no flag sets, and so nothing else checks."""

    patience: NonNegativeInt = 0


def load_preset(name: str, optimiser: str | None = None) -> dict[str, Any]:
    """The preset of this name, or of a JSON file: an object of values by name.

    In a file that a search wrote it is the value of "preset". With another optimiser than its own,
    what belongs to that is left out. Raises ValueError with one sentence if there is no such preset
    or if it sets anything else.
    """
    try:
        found = PRESETS[name] if name in PRESETS else json.loads(Path(name).read_text("utf-8"))
    except OSError:
        known = ", ".join(PRESETS)
        raise ValueError(f"preset={name} is neither a JSON file nor one of {known}") from None
    except ValueError as error:
        raise ValueError(f"preset={name} is not JSON: {error}") from error
    values = found.get("preset", found) if isinstance(found, dict) else found
    if not isinstance(values, dict):
        raise ValueError(f"preset={name}: found {values!r}, expected an object of hyperparameters")
    for unknown in values.keys() - Hyperparameters.model_fields.keys() - BESIDES:
        raise ValueError(f"preset={name}: {unknown!r} is not a hyperparameter")
    try:
        from_pairs(_Unseen, {n: v for n, v in values.items() if n in _Unseen.model_fields})
    except ValueError as error:
        raise ValueError(f"preset={name}: {error}") from error
    if optimiser in (None, values.get("optimiser", "adagrad")):
        return values
    return {n: v for n, v in values.items() if n not in OF_OPTIMISER}


def sizes_for(n_clicks: int, optimiser: str = "adagrad") -> dict[str, float]:
    """What `fit` chooses for a log of this many training clicks where nothing is given."""
    large = n_clicks >= LARGE_LOG
    sizes = (
        {"batch_size": 64, "hidden_size": 256} if large else {"batch_size": 32, "hidden_size": 100}
    )
    return sizes | ({"learning_rate": 0.035 if large else 0.05} if optimiser == "adagrad" else {})
