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
    # The parameters that the authors of GRU4Rec publish for Diginetica, sessions in order of time.
    "diginetica": {
        "order": "time",  # the newest sessions last: on two fifths of the log .4902 became .4998
        "hidden_size": 512,
        "embedding": "shared",
        "n_negatives": 2048,
        "sample_alpha": 0.3,
        "batch_size": 128,
        "dropout_embedding": 0.5,
        "dropout_hidden": 0.3,
        "learning_rate": 0.05,
        "momentum": 0.15,
        "bpreg": 0.9,
        "elu": 1.0,
        "epochs": 10,
        "patience": 0,
    },
    "globo-5d": {},
    "foursquare-nyc": {},
}
