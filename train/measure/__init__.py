"""How good a predictor is: ranks, figures, intervals, paired tests."""
