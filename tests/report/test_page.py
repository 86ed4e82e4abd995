"""The report: whole, self-contained, well formed, and honest about what failed."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from torchimpt.checks import InputError
from torchimpt.patient import ROI
from torchimpt.report import render_report, write_report
from torchimpt.report.numbers import scenario_note, scenario_text

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Balance(HTMLParser):
    """Every tag that opens closes, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()


def test_page_is_well_formed_and_refers_to_nothing_outside(report_data):
    page = render_report(report_data)
    parser = Balance()
    parser.feed(page)
    assert not parser.open and len(parser.ids) == len(set(parser.ids))
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    for picture in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(picture.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))


def test_page_tells_the_results(report_data):
    page = render_report(report_data)
    for text in ("A &amp; B &lt;plan&gt;", "0 of 2 goals met in all 3 scenarios", "Stopped short after 3 iterations", "out of iterations"):
        assert text in page, text
    for part in ("Dose-volume histograms", "Goals", "Regions", "Convergence", "What is left", "Spots", "How it was made", "Body"):
        assert (part in page) == (part != "Body"), part
    assert "PTV &lt;1&gt;" in page and "<plan>" not in page and "PTV <1>" not in page
    assert "2.2<small>min" in page and "2 GB" in page and "0.1 % of the integral dose" in page


def test_range_scenarios_say_which_way_they_go(report_data):
    """A range+3% is a shorter range: the sign is that of the stopping power, and a reader cannot know."""
    page = render_report(report_data)
    assert page.count("range-3% is less stopping power, longer range.") == 2  # beside the goals, and under the table of scenarios
    assert "<title>range -3 % (less stopping power, longer range): " in page
    nominal = {name: doses for name, doses in report_data.roi_doses.items() if name != "range-3%"}
    assert "stopping power" not in render_report(replace(report_data, roi_doses=nominal, goals=()))
    assert scenario_text("y-2mm/range+3.5%") == "y-2mm/range +3.5 % (more stopping power, shorter range)"
    assert scenario_text("nominal") == "nominal" and scenario_note(["nominal", "x+3mm"]) == ""
    both = scenario_note(["range+3%", "x+1mm/range+3%", "range-3%"])
    assert both == "range+3% is more stopping power, shorter range; range-3% is less stopping power, longer range."


DELIVERY = {
    "seconds": 100.0,
    "energy_switch_s": 70.0,
    "spot_s": 3.0,
    "scan_s": 1.0,
    "beam_on_s": 26.0,
    "mu": 7000.0,
    "mu_per_fraction": 200.0,
}
STEPS = [
    {"step": "weights, before moving", "spots": 3, "objective": 9.0, "iterations": 2, "evaluations": 3, "seconds": 0.5},
    {"step": "joint", "spots": 3, "objective": 6.0, "iterations": 1, "evaluations": 1, "seconds": 0.5},
]


def test_page_tells_steps_delivery_and_motion(report_data):
    spots = {"placed": 4000, "count": 3, "nonzero": 2, "energy_layers": 3, "moved_mm": {"mean": 1.25, "max": 4.5}}
    home = report_data.spots.position.detach() + 1.0
    page = render_report(
        replace(report_data, home=home, metrics={**report_data.metrics, "steps": STEPS, "delivery": DELIVERY, "spots": spots})
    )
    parser = Balance()
    parser.feed(page)
    assert not parser.open and len(parser.ids) == len(set(parser.ids)) and "motion" in parser.ids
    for text in (
        "Weights, before moving", "−33.3 %", "of 4,000 in 3 energy layers", "4,000 placed, 3 kept, 2 delivered",
        "The delivered spots moved 1.25 mm on average, 4.50 mm at most.", "Energy switching is 70 % of the delivery time",
        "energy switching 70 s, beam on 26 s, spots and scanning 4.0 s", "7,000, 200 a fraction",
    ):  # fmt: skip
        assert text in page, text


def test_page_of_a_plan_that_did_not_move_or_step(report_data):
    page = render_report(
        replace(report_data, home=report_data.spots.position.detach().clone(), metrics={**report_data.metrics, "steps": STEPS[:1]})
    )
    for text in ("Steps", "A line leads", "enlarged", "<h2>Delivery"):
        assert text not in page, text
    slow = {**DELIVERY, "beam_on_s": 96.0, "seconds": 170.0}
    page = render_report(replace(report_data, metrics={**report_data.metrics, "delivery": slow}))
    assert "<h2>Delivery" in page and "fewer spots" not in page


def test_goals_all_met_are_said_so(report_data):
    goals = [{**goal, "passed": True} for goal in report_data.goals]
    assert "All 2 goals met in all 3 scenarios" in render_report(replace(report_data, goals=goals))


def test_page_without_plan_or_goals(report_data):
    """What `torchimpt dose` has: a dose and nothing else."""
    nominal = {"nominal": report_data.roi_doses["nominal"]}
    bare = replace(
        report_data, roi_doses=nominal, targets=(), prescription=None, goals=(), metrics={}, history=(), spots=None, case="", versions={}
    )
    page = render_report(bare)
    assert "Nominal scenario." in page and "Dose" in page
    for part in ("Goals", "Convergence", "Spots", "case file"):
        assert part not in page


def test_page_of_a_patient_without_rois(report_data):
    patient = replace(report_data.patient, rois={})
    bare = replace(report_data, patient=patient, roi_doses={"nominal": {}}, targets=(), goals=(), metrics={}, history=(), spots=None)
    assert "Dose-volume" not in render_report(bare)


def test_rois_of_similar_names_have_ids_of_their_own(report_data):
    names = ("PTV 70", "PTV-70", "PTV_70", "PTV--70")
    rois = {name: ROI(name, report_data.patient.roi("PTV <1>").mask, "target") for name in names}
    doses = {"nominal": dict.fromkeys(names, report_data.roi_doses["nominal"]["PTV <1>"])}
    page = render_report(
        replace(
            report_data, patient=replace(report_data.patient, rois=rois), roi_doses=doses, targets=names, goals=(), metrics={}, history=()
        )
    )
    keys = re.findall(r'data-roi="([^"]*)"', page)
    ids = re.findall(r'id="([^"]*)"', page)
    assert len(set(keys)) == len(names) and len(ids) == len(set(ids))
    assert all(f"{part}-{key}" in ids for part in ("line", "band") for key in keys)


def test_written_whole_or_not_at_all(tmp_path, report_data, full_disk):
    with full_disk(1000), pytest.raises(InputError, match=r"cannot write .*report\.html: File too large"):
        write_report(tmp_path / "report.html", report_data)
    assert not list(tmp_path.iterdir())
    write_report(tmp_path / "report.html", report_data)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").endswith("</html>")
