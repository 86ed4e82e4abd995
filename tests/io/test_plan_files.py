"""Plan files: every bit comes back, spot lists count beams both ways, and what cannot be read says why."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Beam, RangeShifter
from torchimpt.io import read_plan, write_plan
from torchimpt.machine import Machine, generic
from torchimpt.spots import Spots

BEAMS = (Beam(0.0, 0.0, (1.0, 2.0, 3.0)), Beam(90.0, 15.0, (1.0 / 3.0, 0.1, -7e-9)), Beam(270.0, 0.0, (0.0, 0.0, 0.0)))


@pytest.fixture(scope="module")
def machine() -> Machine:
    return generic()


def random_spots(generator: torch.Generator, dtype: torch.dtype = torch.float32, n: int = 200, beams=BEAMS) -> Spots:
    """Spots whose numbers use all bits of their type; some weights are zero, subnormal or huge."""
    beam = torch.randint(len(beams), (n,), generator=generator)
    beam[: len(beams)] = torch.arange(len(beams))
    energies = 70 + 150 * torch.rand(9, generator=generator, dtype=torch.float64)
    x, y = 100 * torch.randn(2, n, generator=generator, dtype=torch.float64)
    weight = torch.rand(n, generator=generator, dtype=torch.float64) * 10.0 ** torch.randint(-12, 9, (n,), generator=generator)
    weight[:3] = torch.tensor([0.0, torch.finfo(dtype).tiny / 8, 3.4e38], dtype=torch.float64)
    x[3] = -0.0
    return Spots.from_columns(beams, beam, energies[torch.randint(9, (n,), generator=generator)], x, y, weight, dtype=dtype)


def assert_same_bits(a: Spots, b: Spots) -> None:
    for name in ("position", "weight", "layer", "layer_beam", "layer_energy", "layer_shifted"):
        p, q = getattr(a, name).detach(), getattr(b, name).detach()
        assert p.dtype == q.dtype and p.shape == q.shape
        assert p.numpy().tobytes() == q.numpy().tobytes(), name
    assert a.beams == b.beams


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_json_reads_back_bit_for_bit(tmp_path: Path, machine: Machine, generator: torch.Generator, dtype: torch.dtype) -> None:
    spots = random_spots(generator, dtype)
    write_plan(tmp_path / "plan.json", spots, machine, title="H&N 109", rbe=1.1)
    assert_same_bits(read_plan(tmp_path / "plan.json"), spots)
    assert_same_bits(read_plan(tmp_path / "plan.json", spots.beams), spots)
    write_plan(tmp_path / "again.json", read_plan(tmp_path / "plan.json"), machine, title="H&N 109", rbe=1.1)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


def shifted_spots(generator: torch.Generator) -> Spots:
    """The second beam has a range shifter that some of its spots go through."""
    plain, shifter = random_spots(generator), RangeShifter(100.0 / 3.0, 135.9)
    beams = (BEAMS[0], replace(BEAMS[1], shifter=shifter), BEAMS[2])
    shifted = (plain.beam == 1) & (torch.arange(plain.n_spots) % 3 == 0)
    columns = plain.beam, plain.energy, *plain.position.detach().T, plain.weight.detach()
    return Spots.from_columns(beams, *columns, shifted=shifted)


def test_range_shifters_read_back(tmp_path: Path, machine: Machine, generator: torch.Generator) -> None:
    spots, path = shifted_spots(generator), tmp_path / "plan.json"
    assert 0 < int(spots.layer_shifted.sum()) < int((spots.layer_beam == 1).sum())
    write_plan(path, spots, machine)
    assert_same_bits(read_plan(path), spots)
    # the case's say: the same, nothing, or the machine's where it is needed
    for shifter in (spots.beams[1].shifter, None, RangeShifter(100.0 / 3.0, rule="layers"), RangeShifter(100.0 / 3.0)):
        assert_same_bits(read_plan(path, [BEAMS[0], replace(BEAMS[1], shifter=shifter), BEAMS[2]]), spots)
    for shifter in (RangeShifter(40.0, 135.9), RangeShifter(100.0 / 3.0, 140.0)):
        with pytest.raises(InputError, match=r"other beams than the case's: .*with 33\.3333 mm of range shifter at 135\.9 mm"):
            read_plan(path, [BEAMS[0], replace(BEAMS[1], shifter=shifter), BEAMS[2]])
    with pytest.raises(InputError, match="other beams than the case's"):
        read_plan(path, [replace(BEAMS[0], shifter=RangeShifter(40.0, 100.0)), *BEAMS[1:]])
    path.write_text(path.read_text().replace('"range_shifter": true', '"range_shifter": "in"', 1))
    with pytest.raises(InputError, match="range_shifter must be true or false, got 'in'"):
        read_plan(path)


def test_plans_without_range_shifters_do_not_speak_of_them(tmp_path: Path, machine: Machine, generator: torch.Generator) -> None:
    """So that files of before are those of now."""
    for name in ("plan.json", "plan.csv"):
        write_plan(tmp_path / name, random_spots(generator), machine)
        assert "shifter" not in (tmp_path / name).read_text()


def test_range_shifters_in_spot_lists(tmp_path: Path, machine: Machine, generator: torch.Generator) -> None:
    spots, path = shifted_spots(generator), tmp_path / "spots.csv"
    write_plan(path, spots, machine)
    assert_same_bits(read_plan(path, spots.beams), spots)
    with pytest.raises(
        InputError, match=r"goes through 33\.3333 mm of range shifter, but beam 1 of the case has none; set its range_shifter_mm"
    ):
        read_plan(path, BEAMS)
    # a list that does not say
    path.write_text("beam,energy_mev,x_mm,y_mm,weight\n0,100,0,0,1\n1,100,0,0,1\n")
    found = read_plan(path, spots.beams)
    assert found.layer_shifted.tolist() == [False, True]
    with pytest.raises(InputError, match="does not say where beam 1's range shifter is; give range_shifter_distance_mm"):
        read_plan(path, [BEAMS[0], replace(BEAMS[1], shifter=RangeShifter(40.0)), BEAMS[2]])
    with pytest.raises(InputError, match="which spots of beam 1 go through the range shifter is not in the list; give it a column"):
        read_plan(path, [BEAMS[0], replace(BEAMS[1], shifter=RangeShifter(45.0, 100.0, "layers")), BEAMS[2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_csv_reads_back_bit_for_bit(tmp_path: Path, machine: Machine, generator: torch.Generator, dtype: torch.dtype) -> None:
    spots = random_spots(generator, dtype)
    write_plan(tmp_path / "spots.csv", spots, machine)
    assert (tmp_path / "spots.csv").read_text().splitlines()[0] == "beam,energy_mev,x_mm,y_mm,weight"
    assert_same_bits(read_plan(tmp_path / "spots.csv", BEAMS, dtype=dtype), spots)


def test_every_kind_of_single_survives_as_text(tmp_path: Path, machine: Machine, generator: torch.Generator) -> None:
    """Random bit patterns: finite, not negative, of every exponent."""
    bits = torch.randint(0, 0x7F800000, (5000,), generator=generator, dtype=torch.int32)
    weight = bits.view(torch.float32)
    spots = Spots.from_columns(BEAMS[:1], [0] * 5000, [100.0] * 5000, [0.0] * 5000, [0.0] * 5000, weight.double())
    write_plan(tmp_path / "plan.json", spots, machine)
    assert torch.equal(read_plan(tmp_path / "plan.json").weight.detach().view(torch.int32), bits)


def test_json_has_the_mu_of_the_course_and_of_a_fraction(tmp_path: Path, machine: Machine, generator: torch.Generator) -> None:
    spots = random_spots(generator)
    write_plan(tmp_path / "plan.json", spots, machine, fractions=33)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fractions"] == 33
    for spot, energy, weight in zip(plan["spots"], spots.energy.tolist(), spots.weight.tolist(), strict=True):
        mu = weight / float(machine.protons_per_mu(torch.tensor(energy, dtype=torch.float64)))
        assert spot["mu"] == pytest.approx(mu, rel=1e-14) and spot["mu_per_fraction"] == pytest.approx(mu / 33, rel=1e-14)
    # where nobody says into how many fractions a course goes, nothing is said of one: as in the files of version 0.1, which are still read
    write_plan(tmp_path / "old.json", spots, machine)
    old = json.loads((tmp_path / "old.json").read_text())
    assert "fractions" not in old and "mu_per_fraction" not in old["spots"][0]
    assert_same_bits(read_plan(tmp_path / "old.json"), read_plan(tmp_path / "plan.json"))
    with pytest.raises(InputError, match="fractions must be a whole number, 1 or more, got 0"):
        write_plan(tmp_path / "none.json", spots, machine, fractions=0)


def test_json_says_what_a_reader_needs(tmp_path: Path, machine: Machine, generator: torch.Generator) -> None:
    spots = random_spots(generator)
    write_plan(tmp_path / "plan.json", spots, machine, title='a "title"', rbe=1.0)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["title"] == 'a "title"' and plan["machine"] == machine.name and plan["rbe"] == 1.0 and plan["dtype"] == "float32"
    assert plan["beams"][1] == {"gantry_deg": 90.0, "couch_deg": 15.0, "isocenter_mm": [1 / 3, 0.1, -7e-9]}
    assert [(layer["beam"], layer["energy_mev"]) for layer in plan["layers"]] == list(
        zip(spots.layer_beam.tolist(), spots.layer_energy.tolist(), strict=True)
    )
    assert len(plan["spots"]) == spots.n_spots
    per_mu = machine.protons_per_mu(spots.energy)
    for i in (0, 7, 101):
        spot = plan["spots"][i]
        assert set(spot) == {"beam", "layer", "energy_mev", "x_mm", "y_mm", "weight", "mu"}
        assert spot["energy_mev"] == float(spots.energy[i]) and spot["beam"] == int(spots.beam[i])
        assert spot["mu"] == pytest.approx(float(spots.weight[i].detach()) / float(per_mu[i]), rel=1e-6)
    assert '"x_mm": -0.0,' in (tmp_path / "plan.json").read_text()


def test_plain_numbers_stay_plain(tmp_path: Path, machine: Machine) -> None:
    write_plan(tmp_path / "plan.json", Spots.from_columns(BEAMS[:1], [0], [100.1], [0.1], [-2.3], [0.7]), machine)
    assert '"energy_mev": 100.1, "x_mm": 0.1, "y_mm": -2.3, "weight": 0.7' in (tmp_path / "plan.json").read_text()


def test_a_spot_list_in_any_order_with_other_columns(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        "mu, weight ,y_mm,x_mm,energy_mev,beam\n9,0.5,2,1,100,1\n9,0.25,4,3,120,0\n9,1,6,5,120,1\n9,2,8,7,100,1\n"
    )
    spots = read_plan(tmp_path / "list.csv", BEAMS)
    assert spots.beam.tolist() == [0, 1, 1, 1]
    assert spots.energy.tolist() == [120, 120, 100, 100]
    assert spots.position.tolist() == [[3, 4], [5, 6], [1, 2], [7, 8]]
    assert spots.weight.tolist() == [0.25, 1, 0.5, 2] and spots.weight.dtype == torch.float32


def spot_list(path: Path, *beams: object) -> Path:
    path.write_text("beam,energy_mev,x_mm,y_mm,weight\n" + "".join(f"{b},100,{i},0,1\n" for i, b in enumerate(beams)))
    return path


def test_beams_counted_from_one_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read_plan(spot_list(tmp_path / "a.csv", 1, 2, 3), BEAMS).beam.tolist() == [0, 1, 2]
        assert "taken to count from 1" in caplog.text
        caplog.clear()
        assert read_plan(spot_list(tmp_path / "b.csv", 0, 1, 2), BEAMS).beam.tolist() == [0, 1, 2]
        assert read_plan(spot_list(tmp_path / "c.csv", 1, 2), BEAMS).beam.tolist() == [1, 2]
        assert not caplog.text
        assert read_plan(spot_list(tmp_path / "d.csv", 1), BEAMS[:1]).beam.tolist() == [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beam,energy_mev,x_mm,y_mm\n0,100,0,0\n", "has no column weight"),
        ("beam,energy_mev,x_mm,y_mm,weight\n", "has no row under its header"),
        ("", "has no column beam"),
        ("beam,energy_mev,x_mm,y_mm,weight\n0,100,0,zero,1\n", "line 2, column y_mm: expected a number, got 'zero'"),
        ("beam,energy_mev,x_mm,y_mm,weight\n0,100,0,0,nan\n", "line 2, column weight"),
        ("beam,energy_mev,x_mm,y_mm,weight\n0,100,0\n", "line 2, column y_mm"),
        ("beam,energy_mev,x_mm,y_mm,weight\n0,100,0,0,-1\n", r"bad\.csv: weights must not be negative"),
        ("beam,energy_mev,x_mm,y_mm,weight\n0,-100,0,0,1\n", r"bad\.csv: every layer's energy must be a positive"),
        ("beam,energy_mev,x_mm,y_mm,weight\n0.5,100,0,0,1\n", r"beam must be a whole number, got 0\.5"),
        ("beam,energy_mev,x_mm,y_mm,weight\n0,100,0,0,1\n3,100,0,0,1\n", "names beam 3, but the case has 3, which count from 0"),
        ("beam,energy_mev,x_mm,y_mm,weight\n4,100,0,0,1\n", "names beam 4"),
        ("beam,energy_mev,x_mm,y_mm,weight\n-1,100,0,0,1\n", "names beam -1"),
    ],
)
def test_broken_spot_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_plan(tmp_path / "bad.csv", BEAMS)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_spot_lists_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "spots.csv"
    path.write_bytes("beam,energy_mev,x_mm,y_mm,weight,Größe\n0,100,0,0,1,2\n".encode(encoding))
    with pytest.raises(InputError, match=r"spots\.csv is not text in UTF-8 \(.* at byte \d+\); save it anew as UTF-8") as caught:
        read_plan(path, BEAMS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rbe": 1.0}, "was made with RBE 1.0, not 1.1"),
        ({"machine_tables": "0" * 16}, "was made with other tables of machine 'generic'"),
        (
            {"machine": "other", "machine_tables": "0" * 16, "rbe": None},
            "was made with machine 'other', not 'generic' and RBE None, not 1.1",
        ),
        ({"machine": "copy of generic"}, None),  # the tables are the same
    ],
)
def test_another_machine_or_rbe_is_told_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture, changes, told) -> None:
    own = generic()
    path = broken(tmp_path, own, lambda plan: plan.update(changes))
    read_plan(path)
    read_plan(path, machine=own, rbe=1.1)
    assert [record.message for record in caplog.records] == ([] if told is None else [f"{path} {told}: its dose is not the planned one"])
    if told is not None:
        with pytest.raises(
            InputError, match=rf"plan\.json {told}; `torchimpt dose CASE --plan .*` computes it anew with what the case says"
        ):
            read_plan(path, machine=own, rbe=1.1, strict=True)


def test_a_plan_of_an_earlier_version_has_the_machines_name_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = generic()
    read_plan(broken(tmp_path, own, lambda plan: plan.pop("machine_tables")), machine=own, rbe=1.1, strict=True)
    with pytest.raises(InputError, match="was made with machine 'other', not 'generic'"):
        read_plan(broken(tmp_path, own, lambda plan: (plan.pop("machine_tables"), plan.update(machine="other"))), machine=own, strict=True)


def test_rubbish_spot_lists(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(InputError, match=r"bad\.csv"):
        read_plan(tmp_path / "bad.csv", BEAMS)
    with pytest.raises(InputError, match="give the case's beams"):
        read_plan(spot_list(tmp_path / "ok.csv", 0))
    with pytest.raises(InputError, match="has no isocenter"):
        read_plan(spot_list(tmp_path / "ok.csv", 0), (Beam(0.0),))


def broken(tmp_path: Path, machine: Machine, change) -> Path:
    """A good plan.json with something changed."""
    path = tmp_path / "plan.json"
    write_plan(path, Spots.from_columns(BEAMS, [0, 1, 2], [100.0, 110.0, 120.0], [0.0] * 3, [0.0] * 3, [1.0] * 3), machine)
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(format="dij 3"), "no plan of this program: its 'format' must be 'torchimpt plan 1', got 'dij 3'"),
        (lambda p: p.pop("layers"), "the plan lacks 'layers'"),
        (lambda p: p["spots"][1].pop("x_mm"), "the plan lacks 'x_mm'"),
        (lambda p: p["spots"][1].update(weight="much"), "wrong kind"),
        (lambda p: p["spots"][1].update(weight=None), "wrong kind"),
        (lambda p: p["spots"][1].update(weight=-2.0), "weights must not be negative"),
        (lambda p: p["spots"][1].update(weight=float("nan")), "NaN"),
        (lambda p: p["spots"][1].update(layer=9), "layer must be 0 to 2"),
        (lambda p: p["layers"][1].update(energy_mev=0.0), "must be a positive number of MeV"),
        (lambda p: p["beams"][0].update(isocenter_mm=[1.0, 2.0]), "isocenter must be one finite number or three"),
        (lambda p: p["beams"][0].update(gantry_deg="left"), "wrong kind"),
        (lambda p: p["beams"].pop(), "layer_beam must be 0 to 1"),
        (lambda p: p["spots"].clear(), "at least one spot, got none"),
        (lambda p: p.update(spots=3), "wrong kind"),
        (lambda p: p["spots"][1].update(energy_mev=99.5), "spot 1 has energy_mev 99.5, but its layer 1 has 110"),
        (lambda p: p["spots"][1].update(beam=0), "spot 1 has beam 0, but its layer 1 has 1"),
        (lambda p: p["spots"][1].update(weight=10**400), "wrong kind|cannot be read"),
        (lambda p: p["spots"][1].update(layer=10**20), "wrong kind|cannot be read"),
        (lambda p: p["spots"][1].update(layer=True), "wrong kind: layer must be a whole number, got 'True'"),
        (lambda p: p["spots"][1].update(x_mm="1\n2"), r"wrong kind: x_mm must be a number, got '1\\n2'"),
        (lambda p: p["spots"].__setitem__(1, None), "wrong kind"),
        (lambda p: p.update(beams={}), "wrong kind|layer_beam must be"),
        (lambda p: p.update(layers=[[]]), "wrong kind"),
        (lambda p: p.update(dtype=None), "the plan lacks None"),
        (lambda p: p.update(dtype="float8"), "the plan lacks 'float8', or it holds a value that is not known"),
    ],
)
def test_broken_plans(tmp_path: Path, machine: Machine, change, message: str) -> None:
    path = broken(tmp_path, machine, change)
    with pytest.raises(InputError, match=message) as caught:
        read_plan(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_plan(tmp_path: Path, machine: Machine, generator: torch.Generator) -> None:
    path = tmp_path / "plan.json"
    write_plan(path, random_spots(generator), machine)
    with pytest.raises(InputError, match=r"plan: no file .*plans\.json \(did you mean 'plan\.json'\?\)"):
        read_plan(tmp_path / "plans.json")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"plan\.json is not JSON, it may be cut off"):
        read_plan(path)
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match="got 'list'"):
        read_plan(path)
    with pytest.raises(InputError, match=r"must be plan\.json, a \.csv spot list, a DICOM RT Ion Plan or a \.mat"):
        read_plan(tmp_path / "plan.txt")


@pytest.mark.parametrize(
    "beams",
    [
        BEAMS[:2],
        (BEAMS[0], BEAMS[1], Beam(271.0)),
        (BEAMS[0], BEAMS[1], Beam(270.0, 5.0)),
        (BEAMS[0], BEAMS[1], Beam(270.0, 0.0, (0, 0, 1))),
    ],
)
def test_other_beams_than_the_plans_are_refused(tmp_path: Path, machine: Machine, generator: torch.Generator, beams) -> None:
    write_plan(tmp_path / "plan.json", random_spots(generator), machine)
    with pytest.raises(InputError, match=r"planned with other beams than the case's: gantry 0 at \(1, 2, 3\), gantry 90 couch 15 at"):
        read_plan(tmp_path / "plan.json", beams)


def test_the_plans_isocenter_fills_what_the_case_leaves_open(tmp_path: Path, machine: Machine, generator: torch.Generator) -> None:
    write_plan(tmp_path / "plan.json", random_spots(generator), machine)
    assert read_plan(tmp_path / "plan.json", (Beam(0.0), Beam(90.0, 15.0), Beam(-90.0))).beams == BEAMS


def test_plans_that_cannot_be_read_again_are_not_written(tmp_path: Path, machine: Machine, generator: torch.Generator) -> None:
    spots = random_spots(generator)
    with torch.no_grad():
        spots.weight[5] = -1.0
    with pytest.raises(InputError, match="1 negative weights"):
        write_plan(tmp_path / "plan.json", spots, machine)
    with torch.no_grad():
        spots.weight[5] = float("nan")
    with pytest.raises(InputError, match="plan's weight has 1 values that are NaN"):
        write_plan(tmp_path / "plan.json", spots, machine)
    with pytest.raises(TypeError, match="float32 or float64"):
        write_plan(tmp_path / "plan.json", random_spots(generator).half(), machine)
    with pytest.raises(InputError, match=r"must end in \.json or \.csv"):
        write_plan(tmp_path / "plan.dcm", random_spots(generator), machine)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_keeps_the_old_plan(tmp_path: Path, machine: Machine, generator: torch.Generator, full_disk) -> None:
    path, old = tmp_path / "plan.json", random_spots(generator, n=5)
    write_plan(path, old, machine)
    with full_disk(4000), pytest.raises(InputError, match=r"cannot write .*plan\.json: File too large"):
        write_plan(path, random_spots(generator, n=500), machine)
    assert_same_bits(read_plan(path), old)
    assert os.listdir(tmp_path) == ["plan.json"]
