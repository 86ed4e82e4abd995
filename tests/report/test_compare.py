"""Runs side by side."""

from __future__ import annotations

import copy
import json

import pytest

from torchimpt.checks import InputError
from torchimpt.evaluate import scenario_table, worst_table, write_dvh_csv
from torchimpt.report import comparison, read_runs, write_comparison


@pytest.fixture
def runs(tmp_path, report_data):
    """Two complete run folders; the second has a lower objective and took longer."""
    scenarios = scenario_table(report_data.roi_doses)
    metrics = {**report_data.metrics, "scenarios": scenarios, "worst": worst_table(scenarios), "goals": copy.deepcopy(report_data.goals)}
    for name, objective, total in (("a", 6.0, 50.0), ("b", 5.0, 70.0)):
        folder = tmp_path / name / "run"
        folder.mkdir(parents=True)
        own = metrics | {"objective": {"final": objective}, "time_s": {"total": total}}
        (folder / "metrics.json").write_text(json.dumps(own))
        (folder / "case.toml").write_text('[spots]\ntarget = "PTV <1>"\n')
        write_dvh_csv(folder / "dvh.csv", report_data.roi_doses)
    return [tmp_path / "a" / "run", tmp_path / "b" / "run"]


def test_names_tell_the_folders_apart(runs):
    assert [run.name for run in read_runs(runs)] == ["a/run", "b/run"]


def test_table_marks_the_best(runs):
    rows = {row.label: row for row in comparison(read_runs(runs))}
    assert rows["Objective"].cells == ["6", "5"] and rows["Objective"].best == [1]
    assert rows["Time in all"].cells == ["50 s", "70 s"] and rows["Time in all"].best == [0]
    assert rows["PTV <1> D95"].best == [] and len(set(rows["PTV <1> D95"].cells)) == 1
    assert "Monitor units" not in rows
    assert rows["PTV <1> D95 ≥ 50 Gy"].cells[0].endswith("✕")


def test_spots_and_delivery_of_a_moved_run_beside_a_fixed_one(runs):
    for number, (folder, seconds) in enumerate(zip(runs, (190.0, 180.0), strict=True)):
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["spots"] = {
            "placed": 5000,
            "count": 900,
            "nonzero": 800,
            "energy_layers": 60,
            "moved_mm": {"mean": 2.5 * number, "max": 9.0},
        }
        metrics["delivery"] = {"seconds": seconds, "energy_switch_s": 110.0, "mu": 7000.0}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = {row.label: row for row in comparison(read_runs(runs))}
    assert rows["Spots placed"].cells == ["5,000"] * 2 and rows["Spots delivered"].cells == ["800"] * 2
    assert rows["Spots moved, mean"].cells == ["–", "2.50 mm"]
    assert rows["Delivery of a fraction"].cells == ["190 s", "180 s"] and rows["Delivery of a fraction"].best == [1]
    assert rows["of it switching energy"].cells == ["110 s"] * 2


def test_runs_without_motion_have_no_row_of_it(runs):
    rows = {row.label for row in comparison(read_runs(runs))}
    assert "Spots delivered" in rows and not {"Spots moved, mean", "Delivery of a fraction", "Spots placed"} & rows


def test_a_run_may_lack_what_the_other_has(runs):
    metrics = json.loads((runs[0] / "metrics.json").read_text())
    del metrics["goals"], metrics["objective"]
    (runs[0] / "metrics.json").write_text(json.dumps(metrics))
    rows = {row.label: row for row in comparison(read_runs(runs))}
    assert rows["Objective"].cells == ["–", "5"] and rows["Objective"].best == []
    assert rows["PTV <1> D95 ≥ 50 Gy"].cells[0] == "–"


def test_page(runs, tmp_path):
    write_comparison(tmp_path / "comparison.html", read_runs(runs))
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "PTV &lt;1&gt;" in page and 'id="dvh"' in page and page.endswith("</html>") and "<strong>5</strong>" in page


def test_page_where_none_can_be_written(runs, tmp_path):
    with pytest.raises(InputError, match="it is a folder"):
        write_comparison(tmp_path, read_runs(runs))


def test_what_cannot_be_compared(runs, tmp_path):
    with pytest.raises(InputError, match="two or more"):
        read_runs(runs[:1])
    with pytest.raises(InputError, match="same folder"):
        read_runs([runs[0], runs[0]])
    with pytest.raises(InputError, match="no run folder at"):
        read_runs([runs[0], tmp_path / "c"])
    (runs[1] / "metrics.json").unlink()
    with pytest.raises(InputError, match="incomplete"):
        read_runs(runs)


DAMAGE = {
    "empty": lambda raw: b"", "half": lambda raw: raw[: len(raw) // 2], "zeros": lambda raw: bytes(100), "Latin-1": lambda raw: raw + b"\xe9",
    "UTF-16": lambda raw: raw.decode().encode("utf-16"), "a list": lambda raw: b"[1, 2]", "a number": lambda raw: b"3",
    "brackets": lambda raw: b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("file", ["metrics.json", "dvh.csv", "case.toml"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_named(runs, file, damage):
    path = runs[1] / file
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    if (file, damage) == ("case.toml", "empty"):
        assert read_runs(runs)[1].case == {}, "a case may lack what is not compared"
        return
    with pytest.raises(InputError, match="b/run") as caught:
        read_runs(runs)
    assert "\n" not in str(caught.value)


def every(tree, path=()):
    """Paths to all values of a JSON tree, of lists their first."""
    for key, value in tree.items() if isinstance(tree, dict) else list(enumerate(tree))[:1] if isinstance(tree, list) else ():
        yield (*path, key)
        yield from every(value, (*path, key))


def test_no_value_of_the_metrics_ends_in_a_traceback(runs, tmp_path):
    """Each is compared, or the run is named that holds it; a page is written of what is compared."""
    metrics, page, refused = runs[1] / "metrics.json", tmp_path / "page.html", 0
    whole = json.loads(metrics.read_text())
    values = ["gone", None, "x", [], {}, -1, True]
    for number, path in enumerate(every(whole)):
        tree = copy.deepcopy(whole)
        node = tree
        for key in path[:-1]:
            node = node[key]
        value = values[number % len(values)]
        if value == "gone":
            del node[path[-1]]
        else:
            node[path[-1]] = value
        metrics.write_text(json.dumps(tree))
        try:
            records = read_runs(runs)
            comparison(records)
            if number % 10 == 0:  # half a second each
                write_comparison(page, records)
        except InputError as error:
            assert "b/run" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 10


def test_what_was_not_a_number_is_a_dash(runs):
    metrics = json.loads((runs[1] / "metrics.json").read_text())
    metrics["goals"][0] |= {"nominal": None, "worst": None, "passed": False}
    (runs[1] / "metrics.json").write_text(json.dumps(metrics))
    row = next(row for row in comparison(read_runs(runs)) if row.group == "Goals")
    assert row.cells[1] == "–, worst – ✕"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(",100", ",nan", 1), "dvh.csv, line .*: no finite dose and volume"),
        (lambda text: text.replace(",100", ",1e308", 1), "volume of 0 to 100 %: 0, 1e"),
        (lambda text: "\n".join(text.splitlines()[:-7]), "every curve must have the same doses; the file is cut off or altered"),
        (lambda text: text.splitlines()[0], "the file is empty"),
        (lambda text: text.replace(",", ";"), "the columns must be scenario,roi,dose_gy,volume_percent, got scenario;roi"),
    ],
)
def test_a_damaged_dvh_table(runs, change, message):
    path = runs[1] / "dvh.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message):
        read_runs(runs)
