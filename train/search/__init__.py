"""`python -m train search`: hyperparameters tried on a log's validation sessions, and the best."""
