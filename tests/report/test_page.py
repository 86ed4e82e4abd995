"""The report: whole, self-contained, well formed, and honest about what failed."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from torchimpt.checks import InputError
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


def told(page):
    """The page without its scripts."""
    return page[: page.index("<noscript>")]


def test_the_hottest_tissue_outside_the_targets_is_told_and_warned_of(report_data):
    row = {"scenario": "x+3mm", "d1cm3_gy": 66.0, "max_gy": 70.0, "position_mm": [1.0, 2.0, 3.0], "roi": None, "percent": 110.0}
    hottest = {"volume_cm3": 1.0, "nominal": row, "worst": row, "warning": "hot spot outside the targets"}
    page = render_report(replace(report_data, metrics={**report_data.metrics, "hottest_outside_targets": hottest}))
    assert (
        "Hottest 1 cm³ outside the targets: 66.0 Gy (110 % of the prescription) in the scenario x+3mm, at (1, 2, 3) mm LPS, in no ROI."
        in page
    )
    assert "Warning: hot spot outside the targets." in page and "Hot spot outside the targets: 66.0 Gy, 110 %" in page
    cool = render_report(replace(report_data, metrics={**report_data.metrics, "hottest_outside_targets": {**hottest, "warning": None}}))
    assert "Hottest 1 cm³" in cool and "Warning" not in cool and "Hot spot" not in cool


def test_page_is_well_formed_and_refers_to_nothing_outside(report_data):
    page = render_report(report_data)
    parser = Balance()
    parser.feed(page)
    assert not parser.open and len(parser.ids) == len(set(parser.ids))
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    for picture in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(picture)
    for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, flags=re.DOTALL):
        json.loads(text)


def test_page_tells_the_results(report_data):
    page = render_report(report_data)
    for text in ("A &amp; B &lt;plan&gt;", "0 of 2 goals met in all 3 scenarios", "Stopped short after 3 iterations", "out of iterations"):
        assert text in page, text
    for part in ("Dose-volume histograms", "Goals", "Robustness", "Regions", "Convergence", "What is left", "Spots", "How it was made"):
        assert f"<h2>{part}</h2>" in page, part
    assert "Body" not in page
    assert "PTV &lt;1&gt; D95 ≥ 50 Gy: " in page and "Cord &amp; canal D2 ≤ 20 Gy: " in page, "what fails is told first"
    assert "PTV &lt;1&gt;" in page and "<plan>" not in page and "PTV <1>" not in page
    assert "2.2<small>min" in page and "2 GB" in page and "0.1 % of the integral dose" in page


def test_range_scenarios_say_which_way_they_go(report_data):
    """A range+3% is a shorter range: the sign is that of the stopping power, and a reader cannot know."""
    page = render_report(report_data)
    assert page.count("range-3% is less stopping power, longer range.") == 2  # beside the goals, and under the table of scenarios
    assert "<title>range -3 % (less stopping power, longer range): " in page
    nominal = {name: doses for name, doses in report_data.roi_doses.items() if name != "range-3%"}
    assert "stopping power" not in told(render_report(replace(report_data, roi_doses=nominal, goals=())))
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
    assert not parser.open and len(parser.ids) == len(set(parser.ids)) and "spots" in parser.ids
    for text in (
        "Weights, before moving", "−33.3 %", "of 4,000 in 3 energy layers", "4,000 placed, 3 kept, 2 delivered",
        "An arrow leads from where", "The delivered spots moved 1.25 mm on average, 4.50 mm at most.", "Energy switching is 70 % of the delivery time",
        "energy switching 70 s, beam on 26 s, spots and scanning 4.0 s", "7,000, 200 a fraction",
    ):  # fmt: skip
        assert text in page, text


def test_page_of_a_plan_that_did_not_move_or_step(report_data):
    page = render_report(
        replace(report_data, home=report_data.spots.position.detach().clone(), metrics={**report_data.metrics, "steps": STEPS[:1]})
    )
    for text in ("<h2>Steps", "An arrow leads", 'home_x":', "<h2>Delivery"):
        assert text not in page, text
    slow = {**DELIVERY, "beam_on_s": 96.0, "seconds": 170.0}
    page = render_report(replace(report_data, metrics={**report_data.metrics, "delivery": slow}))
    assert "<h2>Delivery" in page and "fewer spots" not in page


def test_goals_all_met_are_said_so(report_data):
    goals = [{**goal, "passed": True} for goal in report_data.goals]
    page = render_report(replace(report_data, goals=goals))
    assert "All 2 goals met in all 3 scenarios" in page and "Closest to its limit: " in page and "Closest" not in render_report(report_data)


def test_page_without_plan_or_goals(report_data):
    """What `torchimpt dose` has: a dose and nothing else."""
    nominal = {"nominal": report_data.roi_doses["nominal"]}
    bare = replace(
        report_data, roi_doses=nominal, targets=(), prescription=None, goals=(), metrics={}, history=(), spots=None, case="", versions={}
    )
    page = render_report(bare)
    assert "Nominal scenario." in page and "Dose" in page
    for part in ("Goals", "Robustness", "Convergence", "Spots"):
        assert f"<h2>{part}" not in page
    assert 'class="verdict' not in page and "every default" not in page


def test_page_of_a_patient_without_rois(report_data):
    patient = replace(report_data.patient, rois={})
    bare = replace(report_data, patient=patient, roi_doses={"nominal": {}}, targets=(), goals=(), metrics={}, history=(), spots=None)
    assert "Dose-volume" not in told(render_report(bare))


def test_what_each_scenario_does_to_each_goal(report_data):
    """A row a scenario, a column a goal; what fails is marked, and nothing else."""
    page = render_report(report_data)
    table = page[page.index("<h2>Robustness") : page.index("<h2>Regions")]
    rows = re.findall(r'data-scenario="([^"]*)".*?</tr>', table)
    assert rows == ["nominal", "range-3%", "x+3mm"]
    failing = sum(value < 50 for value in report_data.goals[0]["values"].values())
    failing += sum(value > 20 for value in report_data.goals[1]["values"].values())
    assert table.count("fail fails") == failing > 0


def test_how_it_was_made_tells_what_makes_it_again(report_data):
    page = render_report(replace(report_data, remake=["git checkout abc", "torchimpt plan 'a <b>.toml'"]))
    assert "git checkout abc\ntorchimpt plan &#39;a &lt;b&gt;.toml&#39;" in page and "title = &#34;x&#34;" in page


def test_the_finer_grid_is_a_table(report_data):
    row = {"roi": "PTV <1>", "metric": "d(95)", "unit": "Gy", "planned": 50.0, "fine": 49.0, "percent": -1.67}
    fine = {"grid_mm": [2.0, 2.0, 2.0], "moved": [row], "warning": "the nominal dose is another"}
    page = render_report(replace(report_data, metrics={**report_data.metrics, "fine": fine}))
    assert "49.00 Gy" in page and "−1.67 %" in page and "Another dose on a finer grid" in page


def test_written_whole_or_not_at_all(tmp_path, report_data, full_disk):
    with full_disk(1000), pytest.raises(InputError, match=r"cannot write .*report\.html: File too large"):
        write_report(tmp_path / "report.html", report_data)
    assert not list(tmp_path.iterdir())
    write_report(tmp_path / "report.html", report_data)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").endswith("</html>")
