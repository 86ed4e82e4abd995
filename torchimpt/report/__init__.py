"""Figures and pages: what a run looks like."""

from torchimpt.report.compare import comparison, read_runs, write_comparison
from torchimpt.report.curves import curves_figure, save_figure
from torchimpt.report.figures import dvh_figure, overlay_figure
from torchimpt.report.motion import fullest_layers, motion_figure
from torchimpt.report.page import ReportData, render_report, write_report
from torchimpt.report.slices import slices_figure

__all__ = [
    "ReportData",
    "comparison",
    "curves_figure",
    "dvh_figure",
    "fullest_layers",
    "motion_figure",
    "overlay_figure",
    "read_runs",
    "render_report",
    "save_figure",
    "slices_figure",
    "write_comparison",
    "write_report",
]
