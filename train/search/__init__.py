"""`python -m train search`: hyperparameters tried on a log's validation sessions, and the best."""

from train.search.command import run_search
from train.search.settings import SearchSettings
from train.search.study import SearchError

__all__ = ["SearchError", "SearchSettings", "run_search"]
