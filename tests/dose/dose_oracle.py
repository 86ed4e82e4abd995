"""The pencil-beam formula spelled from the physics page: dense, float64, plain torch; nothing of `torchimpt.dose` in it.

    phi(v, s) = IDD(z_v) sum_k a_k(z_v) exp(-p^2 / (2 sigma_kx^2) - q^2 / (2 sigma_ky^2)) / (2 pi sigma_kx sigma_ky),
    p = u_v - m_x x_s,  q = v_v - m_y y_s,  sigma_kx^2 = sigma_optics,x^2(Zg) + variance_k(z_v), and so for y

with the exponential cut off (`cut_exponential`), and behind a range shifter the variance that the distance from it adds. Also the small cases that the tests of the dose share.
"""

import dataclasses
import math

import numpy as np
import torch

from torchimpt.dose.scenarios import scenario_doses
from torchimpt.geometry import Beam, Grid
from torchimpt.machine import generic
from torchimpt.machine.optics import Optics
from torchimpt.patient import Patient
from torchimpt.physics.stopping import relative_stopping_power
from torchimpt.physics.wepl import wepl
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.spots import Spots


def gantry_frame(points, beam, shift):
    """`Xg, Yg, Zg` of LPS points, from the physics page's axes one by one; the couch turns the table about the vertical."""
    x, y, z = ((points[:, i] + shift[i] - beam.isocenter[i]) for i in range(3))
    x_s, y_s, z_f = x, z, -y
    c, t = math.radians(beam.couch), math.radians(beam.gantry)
    x_f = x_s * math.cos(c) - y_s * math.sin(c)
    y_f = x_s * math.sin(c) + y_s * math.cos(c)
    return x_f * math.cos(t) - z_f * math.sin(t), y_f, x_f * math.sin(t) + z_f * math.cos(t)


def cut_exponential(t, cutoff):
    """`exp(-t)` less its value at the cut-off, zero beyond, times what gives it the whole exponential's integral, by quadrature."""
    t_max = 0.5 * cutoff**2
    nodes, weights = np.polynomial.legendre.leggauss(60)
    kept = 0.5 * t_max * float(weights @ (np.exp(-0.5 * t_max * (nodes + 1.0)) - math.exp(-t_max)))
    return torch.where(t < t_max, torch.exp(-t) - math.exp(-t_max), 0.0) / kept


def oracle_dose(patient, machine, spots, voxels, scenario=NOMINAL, cutoff=4.0):
    """`dose(position, weight)` on `voxels`, differentiable."""
    rsp = relative_stopping_power(patient, machine)
    points = patient.grid.centers(voxels)
    terms = []
    for number in spots.layer_beam.unique().tolist():
        beam = spots.beams[number]
        u, v, zg = gantry_frame(points, beam, scenario.shift)
        m = [(sad - zg) / sad for sad in machine.sad]
        z = scenario.range_scale * wepl(rsp, patient.grid, beam, machine.sad, points, scenario.shift)
        layers = (spots.layer_beam == number).nonzero().flatten().tolist()
        tables = machine.layers(spots.layer_energy[layers], beam.shifter, spots.layer_shifted[layers])
        gap = 0.0 * zg if beam.shifter is None else (beam.shifter.distance - zg).clamp_min(0.0)
        zg_grid = tables.optics_start + tables.optics_step * np.arange(tables.optics_variance.shape[1])
        at = lambda x, y, a, **k: torch.from_numpy(np.interp(a.numpy(), x, y.numpy(), **k))  # noqa: E731
        for row, layer in enumerate(layers):
            depth = float(tables.depth_step[row]) * np.arange(tables.idd.shape[1])
            idd = at(depth, tables.idd[row], z, right=0.0)
            optics = at(zg_grid, tables.optics_variance[row], zg)
            optics_y = optics if tables.optics_variance_y is None else at(zg_grid, tables.optics_variance_y[row], zg)
            for k in range(tables.n_components):
                added = at(depth, tables.variance[k, row], z)
                if tables.drift is not None:
                    added = added + tables.drift[k, row, 0] * gap + tables.drift[k, row, 1] * gap**2
                amplitude = idd * at(depth, tables.fraction[k, row], z)
                terms.append((spots.layer == layer, u, v, m, amplitude, optics + added, optics_y + added))

    def dose(position, weight):
        total = torch.zeros(len(voxels), dtype=torch.float64)
        for mine, u, v, m, amplitude, variance, variance_y in terms:
            p = u - m[0] * position[mine, 0, None]
            q = v - m[1] * position[mine, 1, None]
            shape = cut_exponential(p**2 / (2 * variance) + q**2 / (2 * variance_y), cutoff)
            total = total + weight[mine] @ (amplitude * shape / (2 * math.pi * (variance * variance_y).sqrt()))
        return total

    return dose


def blocks(seed=3, shape=(15, 17, 16), spacing=(5.0, 4.5, 5.5)):
    """Water with a lung, a bone and an air block, off the isocentre."""
    grid = Grid(shape, spacing, (-33.0, -41.0, -44.0))
    hu = torch.zeros(shape)
    hu[:, 3:8, 9:] = -700.0
    hu[5:, 4:7, 2:5] = 900.0
    hu[9:12, 9:11, 6:10] = -1000.0
    return Patient(hu, grid)


def two_beams(n=24, seed=7, dtype=torch.float64, shifter=None):
    """Spots of two oblique beams, five energies, unequal weights, at random places; some behind a range shifter of the first beam."""
    generator = torch.Generator().manual_seed(seed)
    beams = (Beam(37.0, 20.0, (4.0, -3.0, 2.0)), Beam(250.0, 345.0, (0.0, 5.0, -4.0)))
    energies = torch.tensor([71.0, 78.5, 84.0, 92.0, 99.0], dtype=torch.float64)
    beam = torch.randint(0, 2, (n,), generator=generator)
    energy = energies[torch.randint(0, 5, (n,), generator=generator)]
    x, y = (50 * torch.rand(n, generator=generator, dtype=torch.float64) - 25 for _ in range(2))
    weight = 5.0 + 95.0 * torch.rand(n, generator=generator, dtype=torch.float64)
    shifted = None
    if shifter is not None:
        beams = (dataclasses.replace(beams[0], shifter=shifter), beams[1])
        shifted = (beam == 0) & (torch.rand(n, generator=generator) < 0.6)
    return Spots.from_columns(beams, beam, energy, x, y, weight, dtype=dtype, shifted=shifted)


def elliptic(machine):
    """The machine with spots that widen downstream along x, and are narrower upstream than downstream along y, by other amounts."""
    air, plane = machine.optics, torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)
    optics = Optics(air.energy, -100.0, 25.0, air.sigma * (1.25 - 0.2 * plane), air.sigma * (0.8 - 0.1 * plane**2))
    return dataclasses.replace(machine, optics=optics)


def three_gaussians(machine):
    """The machine with a third Gaussian, twice as wide as its halo, which takes a share of the halo that grows with depth."""
    curves = machine.curves
    share = 0.7 * torch.linspace(0.0, 1.0, curves.fraction.shape[-1], dtype=torch.float64)
    core, halo = curves.fraction
    fraction = torch.stack((core, (1.0 - share) * halo, share * halo))
    variance = torch.cat((curves.variance, 4.0 * curves.variance[1:]))
    return dataclasses.replace(machine, curves=dataclasses.replace(curves, fraction=fraction, variance=variance))


MACHINES = {
    "one": generic(),
    "halo": generic(halo=True),
    "two sources": dataclasses.replace(generic(halo=True), sad=(1850.0, 2310.0)),
    "elliptic": dataclasses.replace(elliptic(generic(halo=True)), sad=(1850.0, 2310.0)),
    "three": three_gaussians(elliptic(generic(halo=True))),
}
SCENARIOS = {
    "nominal": NOMINAL,
    "shift": Scenario("shift", (3.0, -2.0, 1.0)),
    "range": Scenario("range", range_scale=1.035),
    "both": Scenario("both", (-1.5, 3.0, 2.5), 0.965),
}


def operator(patient, machine, spots, voxels, scenario=NOMINAL, **options):
    """One scenario's operator."""
    return scenario_doses(patient, machine, spots, voxels, (scenario,), dtype=spots.weight.dtype, **options)[0]


def distance(a, b):
    """Largest deviation, relative to the largest value."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def norm_distance(a, b):
    """Deviation relative to b, in the Euclidean norm."""
    return float((a.double() - b.double()).norm() / b.double().norm())
