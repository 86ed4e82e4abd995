"""What a plan is worth: DVHs and their bands, dose and volume metrics, goals in the nominal and the worst scenario."""

from torchimpt.evaluate.dvh import Band, Metric, common_axis, conformity, d, dose_axis, dvh, dvh_band, dvh_curves, homogeneity, v
from torchimpt.evaluate.goals import Goal, check_goals
from torchimpt.evaluate.scenario_names import parse_scenarios
from torchimpt.evaluate.tables import read_dvh_csv, roi_doses, roi_metrics, scenario_table, worst_table, write_dvh_csv

__all__ = [
    "Band",
    "Goal",
    "Metric",
    "check_goals",
    "common_axis",
    "conformity",
    "d",
    "dose_axis",
    "dvh",
    "dvh_band",
    "dvh_curves",
    "homogeneity",
    "parse_scenarios",
    "read_dvh_csv",
    "roi_doses",
    "roi_metrics",
    "scenario_table",
    "v",
    "worst_table",
    "write_dvh_csv",
]
