"""Air before the body: closed forms of the range it takes off, whichever way the beam comes, and where it does not count."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import torchimpt as ti
from torchimpt.constants import AIR_RSP
from torchimpt.geometry import Beam, Grid, to_bev
from torchimpt.io.mcsquare.beam_data import beam_data, mean_energy
from torchimpt.machine import generic
from torchimpt.patient import ROI, Patient
from torchimpt.physics.bragg import r80
from torchimpt.physics.wepl import wepl
from torchimpt.spots import Spots
from torchimpt.spots.placement import place_spots

GRID = Grid((21, 60, 21), (3.0, 2.0, 3.0), (-30.0, -59.0, -30.0))
BEAM = Beam(0.0, 0.0, (0.0, 0.0, 0.0))
SAD = (2000.0, 2300.0)


def body() -> torch.Tensor:
    """Water from y = -20 mm on; before it and around there is nothing of a stopping power."""
    rsp = torch.zeros(GRID.shape, dtype=torch.float64)
    rsp[:, 20:] = 1.0
    return rsp


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (2.0, -3.0, 1.0)])
def test_wepl_is_that_of_the_air_from_the_plane_to_the_surface_and_of_the_body(backend, shift):
    """Per ray: water below the surface, air above it up to the plane, both longer by the ray's slope; at voxels before the body air alone."""
    points = GRID.centers(torch.arange(0, GRID.n_voxels, 37))
    x, y, z = to_bev(points, BEAM, shift).unbind(1)
    slope = torch.sqrt(1.0 + (x / (SAD[0] - z)) ** 2 + (y / (SAD[1] - z)) ** 2)
    surface = 20.0 - shift[1]
    wanted = slope * ((surface - z).clamp_min(0.0) + AIR_RSP * (500.0 - torch.maximum(z, torch.tensor(surface))))
    found = wepl(body(), GRID, BEAM, SAD, points, shift, backend=backend, air_from=500.0)
    # rays through the body's sides, where the phantom ends, are others
    inside = (points[:, 0].abs() < 26.0) & (points[:, 2].abs() < 26.0)
    torch.testing.assert_close(found[inside], wanted[inside], rtol=1e-10, atol=1e-9)


def test_a_plane_at_the_isocentre_gives_back_the_airs_part_down_to_zero():
    points = torch.tensor([[0.0, -19.99, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    found = wepl(body(), GRID, BEAM, SAD, points, air_from=0.0)
    assert found.tolist() == pytest.approx([0.0, 20.0 * (1.0 - AIR_RSP)], abs=1e-9)


def phantom() -> Patient:
    target = torch.zeros(GRID.shape, dtype=torch.bool)
    target[8:13, 32:44, 8:13] = True
    hu = torch.where(body() > 0, 0.0, -1000.0).float()
    return Patient(hu, GRID, {"External": ROI("External", body() > 0, "external"), "Target": ROI("Target", target, "target")})


def test_range_moves_by_the_air_and_nothing_else_does():
    """700 mm of air before the surface take 0.75 mm; integral and widths are those of the same depth."""
    plain, airy = generic(), dataclasses.replace(generic(), air_from=720.0)
    grid = Grid((11, 120, 11), (3.0, 0.5, 3.0), (-15.0, -29.75, -15.0))
    water = (grid.axis("y") > -20.0)[None, :, None].expand(grid.shape)
    patient = Patient(torch.where(water, 0.0, -1000.0), grid, {"External": ROI("External", water.clone(), "external")})
    spots = Spots.from_columns([BEAM], [0], [70.0], [0.0], [0.0], [1.0])
    curves = []
    for machine in (plain, airy):
        with torch.no_grad():
            dose = ti.PencilBeamDose(patient, machine, [BEAM], rbe=1.0)(spots).reshape(grid.shape)
        curves.append(r80(grid.axis("y"), dose.sum(dim=(0, 2))))
    assert curves[0] - curves[1] == pytest.approx(700.0 * AIR_RSP, abs=0.02)
    assert plain.fingerprint != airy.fingerprint and generic().air_from is None


def test_layers_reach_the_targets_end_through_the_air():
    """The highest energy has so much more range, as the air takes off."""
    highest = []
    for machine in (generic(), dataclasses.replace(generic(), air_from=3000.0)):
        spots = place_spots(phantom(), machine, [BEAM], "Target", 6.0, margin=0.0)
        highest.append(float(machine.r80(spots.energy.max())))
    # the body's own way is not air: 68 mm of it down to the target's end
    assert highest[1] - highest[0] == pytest.approx((3000.0 - 20.0) * AIR_RSP, abs=0.05)


def test_export_starts_with_the_energy_that_is_left_at_its_nozzle():
    def energies(machine) -> list[float]:
        lines = [line.split() for line in beam_data(machine, [], -100.0, 200.0).text.splitlines()]
        return [float(line[1]) for line in lines if len(line) == 18 and line[0][0].isdigit()]

    plain, airy = energies(generic()), energies(dataclasses.replace(generic(), air_from=700.0))
    wanted = mean_energy(generic().r80(generic().curves.energy).numpy() - 500.0 * AIR_RSP)
    assert airy == pytest.approx(wanted.tolist(), rel=1e-5) and all(b < a for a, b in zip(plain, airy, strict=True))
