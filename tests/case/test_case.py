"""The case file: what loads, what it becomes, and that every slip is told in one line with the key and the nearest match."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import replace

import pytest

from torchimpt import machine
from torchimpt.case import Case, load_case
from torchimpt.case.text import dump_toml
from torchimpt.checks import InputError
from torchimpt.geometry import Beam, RangeShifter
from torchimpt.io import patient
from torchimpt.objectives import KINDS, MODES, CVaR, MinDVH, Nominal, Sum, Voxelwise
from torchimpt.scenarios import NOMINAL, boundary_scenarios, grid_21, grid_81, random_scenarios
from torchimpt.spots.delivery import MACHINES, DeliveryModel

TEXT = """
title = "H&N"
[patient]
source = "image"
path = "ct"
[spots]
target = "PTV70"
[[beam]]
gantry_deg = 90
[[objective]]
roi = "PTV70"
kind = "min_dvh"
volume_percent = 95
dose_gy = 70
weight = 1000.0
[[goal]]
roi = "PTV70"
metric = "d(95)"
min = 66.5
"""


@pytest.fixture
def case_file(tmp_path):
    (tmp_path / "ct").mkdir()
    path = tmp_path / "case.toml"
    path.write_text(TEXT)
    return path


def test_a_small_case_with_defaults(case_file):
    case = load_case(case_file)
    assert case.patient.path == case_file.parent / "ct" and case.machine.name == "generic"
    assert case.dose.rbe == 1.1 and case.dose.grid_mm is None and case.optimizer.method is None
    assert case.beams() == (Beam(90.0),) and case.scenarios() == (NOMINAL,)
    assert case.terms() == (MinDVH("PTV70", 70.0, 1000.0, volume_percent=95.0),)
    assert case.goals()[0].limit == "≥ 66.5 Gy" and case.prescription() == 70.0
    case.check_plan()


def test_resolved_case_loads_back_equal(case_file, tmp_path):
    case = load_case(case_file, ["robustness.setup_mm=5", "dose.grid_mm=[2, 2, 3]", 'title=a "quoted" \\ title', "joint.box_mm=7"])
    (tmp_path / "run").mkdir()
    resolved = tmp_path / "run" / "case.toml"
    resolved.write_text(case.to_toml())
    again = load_case(resolved)
    assert again.model_dump() == case.model_dump() and again.title == 'a "quoted" \\ title' and again.dose.grid_mm == (2.0, 2.0, 3.0)
    assert again.scenarios() == boundary_scenarios(5.0, 3.0)


def test_joint_start_is_a_path_from_the_case_files_folder(case_file, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    case = load_case(case_file, ["joint.start=plan.json"])
    assert case.joint.start == tmp_path / "plan.json" and case.joint.scheme == "joint"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "case.toml").write_text(case.to_toml())
    assert load_case(tmp_path / "run").joint == case.joint


def test_delivery_is_the_machines_pace(case_file):
    assert load_case(case_file).delivery.model() == DeliveryModel()
    keys = {
        "energy_switch_s": 5.0,
        "spot_s": 0.003,
        "speed_x_mm_per_s": 10.0,
        "speed_y_mm_per_s": 20.0,
        "protons_per_s": 3e9,
        "fractions": 30,
    }
    model = load_case(case_file, [f"delivery.{key}={value}" for key, value in {**keys, "min_mu": 0.02}.items()]).delivery.model()
    assert model == DeliveryModel(5.0, 0.003, 10.0, 20.0, 3e9, 1.25e10, 30, 0.02) and model.speed_y == 20.0 and model.protons_per_s == 3e9


def test_single_numbers_replace_those_of_the_machine_that_is_named(case_file):
    case = load_case(case_file, ["delivery.machine=cyclotron", "delivery.spot_s=0.001", "delivery.fractions=30"])
    assert case.delivery.model() == replace(MACHINES["cyclotron"], spot_s=0.001, fractions=30) != MACHINES["synchrotron"]
    case = load_case(case_file, ["delivery.spill_protons=inf"])
    assert case.delivery.model() == replace(DeliveryModel(), spill_protons=math.inf)
    case_file.write_text(case.to_toml())
    assert load_case(case_file).delivery == case.delivery
    with pytest.raises(
        InputError, match=r"delivery: mu_per_s is gone, .*; give protons_per_s .*, or a machine: synchrotron, cyclotron, fast"
    ):
        load_case(case_file, ["delivery.mu_per_s=8.7"])
    with pytest.raises(InputError, match=r"delivery.machine must be one of synchrotron, .* \(did you mean 'cyclotron'\?\)"):
        load_case(case_file, ["delivery.machine=cyclotrn"])


def test_overrides_reach_everywhere(case_file):
    case = load_case(
        case_file, ["seed=7", "optimizer.method=lbfgs", "objective[0].weight=5", "beam.0.couch_deg=10", "machine.hu_table=case.toml"]
    )
    assert case.seed == 7 and case.optimizer.method == "lbfgs" and case.objective[0].weight == 5 and case.beam[0].couch_deg == 10
    assert case.machine.hu_table == case_file and case.machine.name == "generic"


def test_what_is_named_brings_its_keys(case_file):
    """An objective's kind and a robust mode: their parameters are keys, in the types of their annotations, and come back as written."""
    case = load_case(case_file, ["robustness.weights=[1, 2, 0]", "robustness.setup_mm=0"])
    assert case.mode() == Sum((1.0, 2.0, 0.0)) and case.objective[0].own == {"volume_percent": 95.0}
    assert isinstance(case.objective[0].own["volume_percent"], float)
    case_file.write_text(case.to_toml())
    assert load_case(case_file).model_dump() == case.model_dump() and load_case(case_file).mode() == case.mode()


def test_an_objective_may_have_a_mode_of_its_own(case_file):
    override = "objective[0].mode={name='cvar', level=0.8}"
    case = load_case(case_file, [override, "robustness={mode='voxelwise', smoothing_gy=0.2}"])
    assert case.mode() == Voxelwise(0.2) and case.terms()[0].mode == CVaR(level=0.8)
    case_file.write_text(case.to_toml())
    assert load_case(case_file).model_dump() == case.model_dump() and load_case(case_file).terms() == case.terms()
    assert load_case(case_file, ["objective[0].mode=nominal"]).terms()[0].mode == Nominal()


def test_sets_of_scenarios(case_file):
    """In order, with the numbers of the keys; random ones by the case's seed unless they have their own."""

    def scenarios(*keys):
        return load_case(case_file, [f"robustness={{{', '.join(('setup_mm=4.0, range_percent=2.5', *keys))}}}", "seed=5"]).scenarios()

    assert scenarios() == boundary_scenarios(4.0, 2.5)
    assert scenarios("set='grid21'") == grid_21(4.0, 2.5) and scenarios("set='grid81'") == grid_81(4.0, 2.5)
    assert scenarios("set='random'") == random_scenarios(4.0, 2.5, 20, 5, 2.0)
    assert scenarios("set='random', samples=3, seed=8, sigmas=1.0") == random_scenarios(4.0, 2.5, 3, 8, 1.0)


def test_what_is_registered_later_is_known(case_file, monkeypatch):
    """Registries are looked at when a case is read, so that a script can add to them."""
    monkeypatch.setitem(MODES, "twice", lambda: Sum((2.0,) * 9))
    assert load_case(case_file, ["robustness.mode=twice"]).mode() == Sum((2.0,) * 9)
    with pytest.raises(InputError, match=r"one of sum.*, twice, got 'twic' \(did you mean 'twice'\?\)"):
        load_case(case_file, ["robustness.mode=twic"])
    monkeypatch.setitem(patient.READERS, "mha", lambda path: None)
    load_case(case_file, ["patient={source='mha', path='ct'}"])
    monkeypatch.setitem(machine.READERS, "mine", lambda path: None)
    load_case(case_file, ["machine={format='mine', path='ct'}"])


def test_from_python():
    case = Case(patient={"source": "phantom", "name": "hn"}, beam=[{"gantry_deg": 0}, {"gantry_deg": 90}])
    assert len(case.beams()) == 2 and case.prescription() is None
    with pytest.raises(InputError, match=r"the case: unknown key 'beams' \(did you mean 'beam'\?\)"):
        Case(patient={"source": "phantom", "name": "hn"}, beams=[])


def test_a_dose_case_needs_no_spots_and_a_plan_says_what_it_misses():
    case = Case(patient={"source": "phantom", "name": "hn"}, beam=[{"gantry_deg": 0}])
    with pytest.raises(InputError, match=r"missing: \[spots\], \[\[objective\]\]"):
        case.check_plan()


def test_rois_are_checked_with_the_key(case_file):
    case = load_case(case_file)
    case.check_rois(["PTV70", "Cord"])
    message = r"case\.toml: spots\.target: the patient has no ROI 'PTV70' \(did you mean 'PTV7'\?\); it has Cord, PTV7"
    with pytest.raises(InputError, match=message):
        case.check_rois(["PTV7", "Cord"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_objective(kind):
    parameters = inspect.signature(KINDS[kind]).parameters.values()
    extra = {p.name: 5.0 for p in parameters if p.default is p.empty and p.name not in ("roi", "dose")}
    case = Case(patient={"source": "phantom", "name": "hn"}, objective=[{"roi": "A", "kind": kind, "dose_gy": 5, **extra}])
    assert case.terms()[0].kind == kind


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.methd=1", r"unknown key 'optimizer.methd' \(did you mean 'method'\?\); allowed in \[optimizer\]: method, "),
        ("grid_mm=3", r"unknown key 'grid_mm' \(it belongs in \[dose\]\); allowed at the top level: title, seed, patient"),
        (
            "optimizer.method=lbgfs",
            r"optimizer.method must be one of projected_cg, dyhs_cg, .*, got 'lbgfs' \(did you mean 'lbfgs'\?\)",
        ),
        ("robustness={mode='minimax'}", r"robustness.mode must be one of sum.*, got 'minimax'"),
        ("dose.gradient=autgrad", r"dose.gradient must be one of analytic, autograd, got 'autgrad' \(did you mean 'autograd'\?\)"),
        ("dose.engine=autograd", r"dose.engine must be one of auto, matrix, compressed, matrix_free, got 'autograd'"),
        (
            "patient.source=dicm",
            r"patient.source must be one of openkbp, dicom, matrad, image, phantom, got 'dicm' \(did you mean 'dicom'\?\)",
        ),
        ("patient.structures=CT_1", r"source = 'image' takes no structures"),
        ("patient.position=HFR", r"patient.position must be one of HFS, HFP, .*, got 'HFR'"),
        ("patient.source=openkpb", r"patient.source must be one of openkbp, .*\(did you mean 'openkbp'\?\)"),
        ("patient.path=tc", r"patient.path: no such file or folder: .*tc \(did you mean 'ct'\?\)"),
        ("patient={path='ct'}", r"'patient.source' is missing \(where the patient comes from; one of openkbp"),
        ("patient={source='image'}", "source = 'image' needs a path"),
        ("patient={source='phantom'}", "takes a name"),
        ("patient=3", "patient must be a section"),
        ("machine.path=ct", "takes both format and path"),
        ("machine={name='generic', format='csv', path='ct'}", "either name"),
        ("dose.grid_mm=-1", "dose.grid_mm: must be positive, mm, got -1"),
        ("dose.grid_mm=[1,2]", r"one number or three \[x, y, z\]"),
        ("dose.cutoff_sigma=nan", "dose.cutoff_sigma"),
        ("dose.model=pencil", r"dose.model must be one of pencil_beam, got 'pencil' \(did you mean 'pencil_beam'\?\)"),
        ("dose.model=sub_spots", "dose.model must be one of pencil_beam, got 'sub_spots'"),
        ("dose.cutoff_sigma=0.99", "dose.cutoff_sigma must be greater than or equal to 1, got 0.99"),
        ("dose.cutoff_sigma=12.01", "dose.cutoff_sigma must be less than or equal to 12, got 12.01"),
        ("spots.target=[]", "spots.target: must be a ROI's name"),
        ("spots.spacing_mm=0", "spots.spacing_mm must be greater than 0, got 0"),
        ("spots.layer_spacing=0", "'bragg80' or a positive number"),
        ("beam={gantry_deg=1}", r"\[\[beam\]\]"),
        ("beam.0={}", r"'beam\[0\].gantry_deg' is missing \(IEC 61217"),
        ("beam.0.gantry_deg=true", r"beam\[0\].gantry_deg must be a valid number"),
        ("beam.0.isocenter_mm=[1,2]", r"three numbers"),
        ("beam.2.gantry_deg=3", "beam is a list of 1, counted from 0"),
        ("objective.0.kind=mindose", r"must be one of min_dose, .*\(did you mean 'min_dose'\?\)"),
        ("objective.0.kind=max_dose", "takes no volume_percent"),
        ("objective.0={roi='A', kind='max_dvh', dose_gy=1}", "needs volume_percent"),
        ("objective.0.volume_percent='x'", r"objective\[0\]: volume_percent must be a valid number, got 'x'"),
        ("objective.0.volume_percent=true", r"volume_percent must be a valid number, got True"),
        ("objective.0.volume_percent=120", r"objective\[0\]: objective min_dvh of 'PTV70': volume_percent must be 0 to 100, got 120"),
        (
            "objective.0.wieght=2",
            r"'min_dvh' takes no wieght \(did you mean 'weight'\?\); it takes roi, kind, quantity, dose_gy, letd_kev_um, letd_dose_gy_kev_um, weight, mode, constraint, volume_percent",
        ),
        ("objective.0.dose=2", r"takes no dose \(did you mean 'dose_gy'\?\)"),
        ("robustness.mode=some", r"robustness.mode must be one of sum.*, got 'some' \(did you mean 'sum'\?\)"),
        ("robustness={mode='cvar'}", "mode = 'cvar' needs level"),
        *(
            (f"robustness={{mode='cvar', level={level}}}", rf"robustness: mode cvar: level must lie between 0 and 1, .* got {level}$")
            for level in ("1", "0", "-0.5", "95")
        ),
        ("robustness={mode='percentile', percent=100}", "robustness: mode percentile: percent must lie between 0 and 100, got 100"),
        ("robustness={mode='composite', power=0.5}", "robustness: mode composite: power must be 1"),
        ("robustness={weights=[1, 2]}", "robustness: there are 2 scenario weights and 9 scenarios; give one weight for each"),
        ("robustness={mode='expected', set='grid21', weights=[1, 2]}", "robustness: there are 2 scenario weights and 21 scenarios"),
        ("robustness={set='random', samples=4, weights=[1, 2]}", "robustness: there are 2 scenario weights and 5 scenarios"),
        ("robustness={set='grid'}", r"robustness.set must be one of boundary, grid21, grid81, random, got 'grid' \(did you mean 'grid"),
        ("robustness={samples=4}", "robustness: set = 'boundary' takes no samples; it is of set = 'random'"),
        ("robustness={set='random', samples=0}", "robustness.samples must be greater than 0, got 0"),
        ("robustness={set='random', sigmas=0.0}", "robustness.sigmas must be greater than or equal to 0.5"),
        ("robustness={range_percent=100}", "robustness.range_percent must be less than 50, got 100"),
        ("robustness={range_percent=-100}", "robustness.range_percent must be greater than or equal to 0, got -100"),
        ("robustness={setup_mm=100}", "robustness.setup_mm must be less than 100, got 100"),
        ("objective.0.mode=nominl", r"objective\[0\].mode.name must be one of sum, .* got 'nominl' \(did you mean 'nominal'\?\)"),
        ("objective.0.mode=cvar", r"objective\[0\].mode: name = 'cvar' needs level"),
        ("objective.0.mode={name='cvar', levl=0.5}", r"objective\[0\].mode: name = 'cvar' takes no levl \(did you mean 'level'"),
        ("objective.0.mode={name='cvar', level=1.5}", r"objective\[0\].mode: mode cvar: level must lie between 0 and 1, .* got 1.5"),
        ("objective.0.mode={name='sum', weights=[1, 2]}", r"objective\[0\].mode: there are 2 scenario weights and 1 scenario"),
        ("objective.0.mode=3", r"objective\[0\].mode must be a section"),
        (
            "robustness.setup=2",
            r"mode = 'sum' takes no setup \(did you mean 'setup_mm'\?\); it takes setup_mm, range_percent, mode, set, samples, seed, sigmas, weights",
        ),
        ("robustness.weights=[1, 'x']", r"robustness: weights must be a valid number, got \[1, 'x'\]"),
        ("robustness.weights=[0, 0]", "robustness: scenario weights must be zero or more"),
        ("goal.0.metric=d95", r"metric 'd95' is none of .*\(did you mean 'd\(95\)'\?\)"),
        ("goal.0={roi='A', metric='mean'}", "needs min or max"),
        ("joint.bx_mm=3", r"unknown key 'joint.bx_mm' \(did you mean 'box_mm'\?\); allowed in \[joint\]: scheme, box_mm, spots"),
        ("joint.box_mm=-1", "joint.box_mm must be greater than or equal to 0, got -1"),
        ("joint.scheme=alternate", r"joint.scheme must be one of joint, alternating, .*\(did you mean 'alternating'\?\)"),
        ("joint.spots=0", "joint.spots must be greater than 0, got 0"),
        ("joint.spots=2.5", "joint.spots must be a valid integer, got 2.5"),
        ("joint.start=cas.toml", r"joint.start: no such file or folder: .*cas.toml \(did you mean 'case.toml'\?\)"),
        ("joint.merge_mm=-2", "joint.merge_mm must be greater than or equal to 0"),
        ("spots.jitter_mm=-1", "spots.jitter_mm must be greater than or equal to 0, got -1"),
        ("delivery.min_mu=-0.01", "delivery.min_mu must be greater than or equal to 0"),
        ("delivery.min_layer_share=1", "delivery.min_layer_share must be less than 1, got 1"),
        ("delivery.fractions=0", "delivery.fractions must be greater than 0"),
        ("delivery.speed_x=1", r"unknown key 'delivery.speed_x' \(did you mean 'speed_x_mm_per_s'\?\)"),
        ("title.x=3", "title is a value"),
        ("seed=-1", "seed must be greater than or equal to 0, got -1"),
        ("seed", "write section.key=value"),
        # numbers that no float64 or no generator holds, and text that is more than one line
        ("seed=18446744073709551616", r"seed must be less than 9223372036854775808, got 18446744073709551616$"),
        ("seed=" + "1" * 401, r"seed must be less than 9223372036854775808, got a number of 401 digits$"),
        ("seed=null", "seed must be a valid integer, got 'null'"),
        ("optimizer.max_iterations=" + "1" * 20, r"max_iterations must be less than or equal to 1000000000, got 1+$"),
        ("spots.margin_mm=1e308", r"spots.margin_mm must be less than or equal to 1000000000, got 1e\+308"),
        ("spots.margin_mm=1" + "0" * 400, r"spots.margin_mm .* got a number of 401 digits$"),
        ("dose.grid_mm=1" + "0" * 400, r"dose.grid_mm: must be .*, each between -1e\+09 and 1e\+09, got a number of 401 digits$"),
        ("beam.0.isocenter_mm=[0,0,1e308]", r"three numbers .* each between -1e\+09 and 1e\+09, got \[0, 0, 1e\+308\]$"),
        ("spots.layer_spacing=1e308", r"'bragg80' or a positive number of mm of water, got 1e\+308$"),
        ("dose.rbe=1e-308", "dose.rbe must be greater than or equal to 0.1, got 1e-308"),
        ("delivery.protons_per_s=inf", "delivery.protons_per_s must be"),
        (r'title="a\nb"', r"title: must be one line of text without control characters, got 'a\\nb'$"),
        (r'title="\u202eevil"', r"title: must be one line of text without control characters, got '\\u202eevil'$"),
        (r'objective.0.roi="a\tb"', r"objective\[0\].roi: must be one line of text"),
        ("title=[" + "1," * 200 + "]", r"title must be a valid string, got \[1, 1, .*\.\.\. \(600 characters\)$"),
        ("joint.start='~nobody9/plan.json'", r"joint.start: no such file or folder: .*~nobody9/plan.json"),
        (r'joint.start="a\u0000b"', r"joint.start: .*a\\x00b"),
        ("objective[99999999999999999999].weight=1", "objective is a list of 1, counted from 0"),
        ("objective[²].weight=1", "objective is a list of 1, counted from 0"),
    ],
)
def test_every_slip_is_one_line(case_file, override, message):
    with pytest.raises(InputError, match=message) as caught:
        load_case(case_file, [override])
    assert "\n" not in str(caught.value)
    assert override in str(caught.value) or str(caught.value).startswith(f"{case_file}: ")


def test_several_slips_are_counted(case_file):
    with pytest.raises(InputError, match=r"unknown key 'dose.cutof' .* \(and 1 more\)$"):
        load_case(case_file, ["dose.cutof=3", "seed=-1"])


def test_files_that_are_no_case(tmp_path, case_file):
    with pytest.raises(InputError, match=re.escape("(did you mean 'case.toml'?)")):
        load_case(tmp_path / "cas.toml")
    with pytest.raises(InputError, match=r"has no case\.toml: it is no run folder"):
        load_case(tmp_path / "ct")
    assert load_case(tmp_path).title == "H&N"
    case_file.write_text("a = = 3")
    with pytest.raises(InputError, match="not valid TOML"):
        load_case(case_file)
    for content in (TEXT.replace("H&N", "Fäll").encode("latin-1"), TEXT.encode("utf-16"), b"a = " + b"[" * 100_000, b"\0" * 100):
        case_file.write_bytes(content)
        with pytest.raises(InputError, match=r"case\.toml") as caught:
            load_case(case_file)
        assert "\n" not in str(caught.value)


def test_range_shifters(case_file):
    own = RangeShifter(45.0, rule="layers")

    def shifter(*overrides, of=own):
        return load_case(case_file, [f"beam.0.range_shifter_{text}" for text in overrides]).beams(of)[0].shifter

    assert shifter() is None and shifter("mm=0") is None
    assert shifter("mm=40", "distance_mm=120") == RangeShifter(40.0, 120.0) and shifter("mm=40").rule == "all"
    # on the machine's snout: where that is
    assert shifter("mm=40") == RangeShifter(40.0) and shifter("mm=40", of=RangeShifter(45.0, 300.0)) == RangeShifter(40.0, 300.0)
    auto = shifter("mm=auto")
    assert auto == own and auto.rule == "layers" and shifter("mm=auto", "distance_mm=150") == RangeShifter(45.0, 150.0)
    again = load_case(case_file, ["beam.0.range_shifter_mm=auto"])
    case_file.write_text(again.to_toml())
    assert load_case(case_file) == again


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mm=auto"], r"beam\[0\]: range_shifter_mm = 'auto' is the machine's range shifter, and this machine's files tell of none; give a number"),
        (["distance_mm=100"], r"range_shifter_distance_mm says where a range shifter is; give range_shifter_mm, too"),
        (["mm=0", "distance_mm=100"], r"give range_shifter_mm, too"),
        (["mm=-40"], r"range_shifter_mm: must be 'auto' or 0 to 400 mm of water, got -40"),
        (["mm=atuo"], r"range_shifter_mm: must be 'auto' or 0 to 400 mm of water, got 'atuo'"),
        (["mm=4000"], r"range_shifter_mm: must be 'auto' or 0 to 400"),
        (["mm=40", "distance_mm=-1"], r"range_shifter_distance_mm must be greater than or equal to 0, got -1"),
    ],
)  # fmt: skip
def test_range_shifters_that_cannot_be(case_file, overrides, message):
    with pytest.raises(InputError, match=message):
        load_case(case_file, [f"beam.0.range_shifter_{text}" for text in overrides]).beams()


def test_toml_of_every_scalar():
    assert dump_toml({"a": True, "b": 1, "c": 0.1, "d": "x\n\x7f", "e": [1.0, 2.0], "f": None, "g": [], "h": {"i": 1e-7}}) == (
        'a = true\nb = 1\nc = 0.1\nd = "x\\n\\u007f"\ne = [1.0, 2.0]\n\n[h]\ni = 1e-07\n'
    )
