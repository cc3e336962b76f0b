"""Hyperparameters that were searched for on a log's validation sessions, by the log's name.

How they were found, and what did not help, stands in docs/experiments.md.
"""

PRESETS: dict[str, dict[str, object]] = {
    "default": {},
    "rsc15-100k": {
        "embedding": "shared",
        "n_negatives": 2048,
        "batch_size": 32,
        "dropout_embedding": 0.5,
        "dropout_hidden": 0.2,
        "learning_rate": 0.05,
    },
}
