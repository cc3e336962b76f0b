"""What people would use instead of a network, each a `Predictor` of train/measure/ranking.py."""
