"""Hyperparameters by the name of the log they were found on, from presets.toml or a user's file."""

import json
import tomllib
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

PRESETS: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("presets.toml").read_text("utf-8")
)


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
