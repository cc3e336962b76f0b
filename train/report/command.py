"""``python -m train report``: kept evaluations in, one page of HTML out."""

from pathlib import Path

from pydantic import Field

from train.command import Settings, TrainError
from train.measure.results import load_evaluations
from train.report.page import write_report


class ReportSettings(Settings):
    """Write a page with tables and plots of kept evaluations, for a browser without a network."""

    runs: list[Path] = Field(min_length=1)
    """Folders with evaluations (*.evaluation.npz), searched with all folders below them; repeat the
    flag for more."""
    out: Path = Path("report.html")
    """Page to write."""
    title: str = "Next click: evaluation"
    """Heading of the page."""


def run_report(settings: ReportSettings) -> None:
    """Write the page.

    Raises TrainError for a folder without evaluations, or a page that cannot be written.
    """
    evaluations = load_evaluations(settings.runs)
    try:
        write_report(settings.out, evaluations, settings.title)
    except OSError as error:
        raise TrainError(f"out={settings.out} cannot be written: {error.strerror}") from error
