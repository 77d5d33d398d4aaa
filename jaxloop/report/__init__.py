"""A run as one HTML file, and finished runs as one picture."""

from jaxloop.report.build import build_report
from jaxloop.report.figure import write_figure

__all__ = ["build_report", "write_figure"]
