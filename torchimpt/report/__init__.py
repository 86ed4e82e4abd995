"""Figures and pages: what a run looks like."""

from torchimpt.report.figures import convergence_figure, dvh_figure, overlay_figure
from torchimpt.report.page import ReportData, render_report, write_report
from torchimpt.report.slices import slices_figure
from torchimpt.report.spot_maps import layer_weights_figure, spot_maps_figure

__all__ = [
    "ReportData",
    "convergence_figure",
    "dvh_figure",
    "layer_weights_figure",
    "overlay_figure",
    "render_report",
    "slices_figure",
    "spot_maps_figure",
    "write_report",
]
