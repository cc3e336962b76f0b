"""What live learning is worth on a log, and the weights that it needs."""
