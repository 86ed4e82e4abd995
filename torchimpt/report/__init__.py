"""Figures and pages: what a run looks like."""

from torchimpt.report.compare import comparison, read_runs, write_comparison
from torchimpt.report.figures import convergence_figure, dvh_figure, overlay_figure
from torchimpt.report.page import ReportData, render_report, write_report
from torchimpt.report.slices import slices_figure
from torchimpt.report.spot_maps import layer_weights_figure, spot_maps_figure

__all__ = [
    "ReportData",
    "comparison",
    "convergence_figure",
    "dvh_figure",
    "layer_weights_figure",
    "overlay_figure",
    "read_runs",
    "render_report",
    "slices_figure",
    "spot_maps_figure",
    "write_comparison",
    "write_report",
]
