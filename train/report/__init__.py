"""What trainings and evaluations leave for people: pictures, figures and a page of HTML."""

from train.report.command import ReportSettings, run_report
from train.report.page import write_report
from train.report.training import PLOT, plot_training, write_figures

__all__ = [
    "PLOT",
    "ReportSettings",
    "plot_training",
    "run_report",
    "write_figures",
    "write_report",
]
