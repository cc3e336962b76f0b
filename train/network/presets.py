"""Hyperparameters that were searched for on a log's validation sessions, by the log's name.

How they were found, and what did not help, stands in docs/experiments.md.
"""

PRESETS: dict[str, dict[str, object]] = {
    "default": {},
    "rsc15-100k": {
        "embedding": "shared",
        "n_negatives": 2048,
        "batch_size": 16,
        "bptt": 2,  # one click a step, 32 sessions: .6846/.3647 after 9 epochs; two: .6918/.3670
        "dropout_embedding": 0.5,
        "dropout_hidden": 0.2,
        "learning_rate": 0.05,
    },
    # Half the units of the authors' published network: twice as many overfit two fifths of the log.
    "diginetica": {
        "order": "time",  # the newest sessions last: on two fifths of the log .4902 became .4998
        "hidden_size": 256,
        "embedding": "shared",
        "normalise": True,
        "temperature": 16.0,
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
    "globo-5d": {},
    "foursquare-nyc": {
        "embedding": "shared",
        "batch_size": 32,
        "bptt": 2,  # one click a step, 64 sessions: .6140/.2816; two: .6295/.2895
        "dropout_embedding": 0.3,
        "dropout_hidden": 0.2,
        "learning_rate": 0.05,
        "epochs": 8,
    },
}
