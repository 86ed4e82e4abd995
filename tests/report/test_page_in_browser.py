"""The pages in headless Chromium: what can be chosen changes what is drawn, nothing is asked of a network, nothing is too wide."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from torchimpt.evaluate import dvh_curves
from torchimpt.report import render_report, write_report
from torchimpt.report.compare import Ground, RunRecord, write_comparison
from torchimpt.studies.browser import browser, find_chromium

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on the path; apt-get install chromium")

READY = "[...document.querySelectorAll('[data-slices]')].every(node => node.dataset.dose)"
PIXELS = "document.querySelectorAll('#slices figure canvas')[%d].toDataURL()"
LINES = "[...document.querySelectorAll('#dvh path.curve')].map(node => node.dataset.roi).join()"


@pytest.fixture(scope="module")
def chromium():
    """One browser for all tests of this file: it takes a second to start."""
    with browser() as one:
        yield one


@pytest.fixture
def page(chromium, tmp_path, report_data):
    """The report of the small run, with its scenarios' doses and spots that moved, open and drawn."""
    nominal = report_data.dose
    home = report_data.spots.position.detach() + torch.tensor([3.0, -2.0])
    doses = {"range-3%": 0.97 * nominal, "x+3mm": nominal.roll(1, 2)}
    write_report(tmp_path / "report.html", replace(report_data, scenario_doses=doses, home=home))
    chromium.problems.clear()
    chromium.requests.clear()
    chromium.open(tmp_path / "report.html")
    chromium.wait(READY)
    yield chromium
    assert not chromium.problems
    assert set(chromium.requests) <= {(tmp_path / "report.html").as_uri()}, "the page asks for nothing but itself"


def test_a_slider_moves_its_slice_alone_and_keys_move_it(page):
    """The marks at the edges of the other two pictures follow, so the picture inside them is looked at by its title."""
    before = [page.run(PIXELS % k) for k in range(3)]
    title = page.run("document.querySelector('#slices figure output').textContent")
    page.run("document.querySelector('#slices figure input').focus()")
    page.press("ArrowRight")
    assert page.run("document.querySelector('#slices figure output').textContent") != title
    assert page.run(PIXELS % 0) != before[0]
    page.press("ArrowLeft")
    assert [page.run(PIXELS % k) for k in range(3)] == before


def test_a_roi_is_switched_in_curves_and_outlines(page):
    drawn, picture = page.run(LINES), page.run(PIXELS % 0)
    assert drawn == "Cord & canal,PTV <1>"
    page.run("document.querySelector('#dvh input[data-roi^=PTV]').click()")
    assert page.run(LINES) == "Cord & canal" and page.run(PIXELS % 0) != picture
    assert page.run("[...document.querySelectorAll('input[data-roi^=PTV]')].every(box => !box.checked)")
    page.run("[...document.querySelectorAll('#slices .regions button')].find(node => node.textContent === 'All').click()")
    assert page.run(LINES) == drawn and page.run(PIXELS % 0) == picture


def test_a_scenario_is_chosen_for_curves_and_slices_at_once(page):
    before, line = page.run(PIXELS % 0), page.run("document.querySelector('#dvh path.curve[data-roi^=PTV]').getAttribute('d')")
    page.run("document.querySelector('button[data-scenario=\"x+3mm\"]').click()")
    page.wait("document.querySelector('#slices').dataset.dose === 'x+3mm'")
    assert page.run(PIXELS % 0) != before
    assert page.run("document.querySelector('#dvh path.curve[data-roi^=PTV]').getAttribute('d')") != line
    assert page.run("document.querySelector('#dvh path.nominal[data-roi^=PTV]').getAttribute('d')") == line
    assert page.run("[...document.querySelectorAll('#dvh select, #slices [name=dose]')].map(node => node.value).join()") == "x+3mm,x+3mm"


def test_the_difference_to_nominal(page, report_data):
    """Of 3 % less dose everywhere: -1.8 Gy at 60 Gy, within half a level of 0.24 Gy either way of both doses."""
    page.run("document.querySelector('#slices [name=dose]').value = 'range-3%'")
    page.run("document.querySelector('#slices [name=dose]').dispatchEvent(new Event('change'))")
    page.wait("document.querySelector('#slices').dataset.dose === 'range-3%'")
    dose = page.run(PIXELS % 0)
    page.run(
        "(() => { const show = document.querySelector('[name=show]'); show.value = 'difference'; show.dispatchEvent(new Event('change')); })()"
    )
    assert page.run(PIXELS % 0) != dose
    page.run("""(() => { const canvas = document.querySelector('#slices canvas'), box = canvas.getBoundingClientRect();
        canvas.dispatchEvent(new PointerEvent('pointermove', { clientX: box.left + box.width * 50 / 88, clientY: box.top + box.height / 2 })); })()""")
    told = page.run("document.querySelector('#slices .readout').textContent")
    assert "range-3%" in told and "difference" in told and "LPS" in told
    change = float(told.split("difference ")[1].split(";")[0].replace("−", "-"))
    assert change == pytest.approx(-0.03 * 60.0, abs=0.25)


def test_layers_and_arrows(page):
    assert (
        page.run("document.querySelectorAll('#spots .way').length")
        == page.run("document.querySelectorAll('#spots .large circle').length")
        == 1
    )
    title = page.run("document.querySelector('#spots output').textContent")
    page.run(
        "document.querySelector('#spots select').value = 1; document.querySelector('#spots select').dispatchEvent(new Event('change'))"
    )
    assert page.run("document.querySelector('#spots output').textContent") != title
    assert "85.0 MeV" in page.run("document.querySelector('#spots output').textContent")
    page.run("document.querySelector('#spots .beam .tiles-of-layers button').click()")
    assert page.run("document.querySelector('#spots select').value") == "0"


def test_every_control_has_a_name(page):
    nameless = """[...document.querySelectorAll('input, select, button')].filter(node =>
        !(node.getAttribute('aria-label') || node.textContent.trim() || (node.labels && [...node.labels].some(l => l.textContent.trim())))).length"""
    assert page.run("document.querySelectorAll('input, select, button').length") > 20 and page.run(nameless) == 0


def test_a_phone_needs_no_scrolling_sideways_and_paper_has_all(page, tmp_path):
    for dark in (False, True):
        page.open(tmp_path / "report.html", 390, 844, phone=True, dark=dark, scale=2.0)
        page.wait(READY)
        assert page.run("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
    assert page.run("document.querySelector('details').open"), "what is folded away is printed"


def test_two_runs(chromium, tmp_path, report_data):
    curves, tables = dvh_curves(report_data.roi_doses), {"goals": report_data.goals}
    case = {"spots": {"target": "PTV <1>"}}
    runs = [RunRecord(name, tables, curves, case) for name in ("a", "b & c", "as a")]
    ground = Ground(report_data.patient, {"a": report_data.dose, "b & c": 0.9 * report_data.dose, "as a": report_data.dose}, 60.0)
    write_comparison(tmp_path / "page.html", runs, ground)
    chromium.problems.clear()
    chromium.open(tmp_path / "page.html", 390, 844, phone=True)
    chromium.wait(READY)
    assert chromium.run("document.documentElement.scrollWidth") == 390
    assert chromium.run("document.querySelectorAll('#dvh path.curve').length") == 6

    def hidden(dose):
        """Whether hiding all that differs leaves the picture of the difference as it is."""
        chromium.run(
            f"(() => {{ const menu = document.querySelector('#slices [name=dose]'); menu.value = '{dose}'; menu.dispatchEvent(new Event('change')); }})()"
        )
        chromium.wait(f"document.querySelector('#slices').dataset.dose === '{dose}'")
        chromium.run(
            "(() => { const show = document.querySelector('[name=show]'); show.value = 'difference'; show.dispatchEvent(new Event('change')); })()"
        )
        before = chromium.run(PIXELS % 1)
        chromium.run(
            "(() => { const least = document.querySelector('[name=least]'); least.value = least.max; least.dispatchEvent(new Event('input')); })()"
        )
        return chromium.run(PIXELS % 1) == before

    assert not hidden("b & c") and hidden("as a"), "what does not differ has no colour"
    assert not chromium.problems


def test_names_cannot_break_out_of_the_page(chromium, tmp_path, report_data):
    title = "</script><script>console.error('out')</script>"
    patient = replace(report_data.patient, name=title)
    page = render_report(replace(report_data, title=title, patient=patient, case=title))
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    chromium.problems.clear()
    chromium.open(tmp_path / "page.html")
    chromium.wait(READY)
    assert chromium.run("document.title") == title and not chromium.problems
