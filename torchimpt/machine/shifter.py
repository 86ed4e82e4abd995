"""Energy layers that go through a range shifter: tables of what is behind it.

In water-equivalent depth the shifter, of thickness t, is the first t of the protons' way: behind it, z deep in the patient, the depth
dose is that of the depth t + z, the range is shorter by t, and energy spread and losses are what they are at t + z. What differs is the way
across: a plane that lies D behind the shifter's downstream face sees what is scattered in the shifter from farther than in a water tank,

    sigma^2 = sigma_optics^2 + [sigma_k^2(t + z) - (A_2 + 2 z A_1 + z^2 A_0)] + rho (A_2 / s^2 + 2 D A_1 / s + D^2 A_0),

with the moments A_n of `physics.scatter.scattering_moment` over the shifter, rho its scattering power over that of water and s its stopping
power (Lexan's): the machine's own variance, less what its first t of water contribute to it by theory, plus what the shifter does. D is the
plain distance, `distance - Zg`: scattered protons fly straight through air and patient, whatever those are made of. What the
patient scatters is taken as the depth t + z of a water tank has it, as everywhere in this package.

Secondaries that leave the shifter spread over the gap: they are a component of their own, the last, with the share and angle of
`physics.nuclear`. Of the machine's own halo, what has grown in the shifter is left out: its share is that at t + z, less that at t, plus
that of the open beam.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from torchimpt.checks import InputError
from torchimpt.geometry import RangeShifter
from torchimpt.machine.tables import LayerTables
from torchimpt.physics.nuclear import shifter_angle, shifter_share
from torchimpt.physics.scatter import LEXAN_SCATTERING, LEXAN_STOPPING, scattering_moment


def behind_shifter(tables: LayerTables, shifter: RangeShifter, shifted: torch.Tensor) -> LayerTables:
    """The tables with some layers behind a range shifter; depths in them count from the patient's surface.

    Parameters
    ----------
    tables
        Of all the layers, in open air.
    shifter
        With its distance.
    shifted
        bool `(n_layers,)`: which layers go through it.

    Returns
    -------
    Tables with one component more, in which the other layers have no share.
    """
    assert shifter.distance is not None
    t, samples = shifter.thickness, tables.idd.shape[1]
    short = shifted & (tables.r80 <= t)
    if bool(short.any()):
        i = int(short.nonzero()[0])
        raise InputError(
            f"a range shifter of {t:g} mm of water stops protons of {float(tables.energy[i]):.5g} MeV, whose range is "
            f"{float(tables.r80[i]):.4g} mm; take a thinner one, or higher energies"
        )
    off = t * shifted.double()
    step = tables.depth_step - off / (samples - 1)
    z = step[:, None] * torch.arange(samples, dtype=torch.float64)
    place = (off[:, None] + z) / tables.depth_step[:, None]
    left = place.long().clamp(max=samples - 2)

    def at(table: torch.Tensor) -> torch.Tensor:
        low, high = (table.gather(-1, i.expand(table.shape)) for i in (left, left + 1))
        return torch.where(shifted[:, None], low + (place - left) * (high - low), table)

    idd, variance, fraction = at(tables.idd), at(tables.variance), at(tables.fraction)
    idd[:, -1] = 0.0
    drift = torch.zeros((*variance.shape[:2], 2), dtype=torch.float64)
    wide, wide_drift, share = torch.ones_like(idd), torch.zeros_like(drift[0]), torch.zeros_like(idd)
    for i in shifted.nonzero().flatten().tolist():
        mean_range = float(tables.r80[i])
        a0, a1, a2 = (float(scattering_moment(n, torch.tensor([t]), mean_range)) for n in (0, 1, 2))
        inside = (variance[:, i] - (a2 + 2.0 * z[i] * a1 + z[i] ** 2 * a0)).clamp_min(0.0)
        variance[:, i], drift[:, i] = _drifted(inside, LEXAN_SCATTERING * a0, LEXAN_SCATTERING * a1, LEXAN_SCATTERING * a2)
        # secondaries arise all over the shifter, each at an angle: moments of a scattering power that is the same everywhere
        square = shifter_angle(mean_range, t) ** 2
        wide[i], wide_drift[i] = _drifted(inside[0], square, square * t / 2.0, square * t**2 / 3.0)
        share[i] = shifter_share(z[i], mean_range, t)
    # of the machine's own halo what the shifter has made is in the new component, by another account; what the beam brings along stays
    own = fraction[1:] - shifted[:, None] * (fraction[1:, :, :1] - tables.fraction[1:, :, :1])
    wider = torch.cat((own.clamp_min(0.0), share[None]))
    core = torch.where(shifted[:, None], 1.0 - wider.sum(dim=0), fraction[0])
    fraction = torch.cat((core[None], wider))
    return replace(
        tables, r80=tables.r80 - off, peak=tables.peak - off, depth_step=step, idd=idd, fraction=fraction,
        variance=torch.cat((variance, wide[None])), drift=torch.cat((drift, wide_drift[None])), face=shifter.distance,
    )  # fmt: skip


def _drifted(inside: torch.Tensor, a0: float, a1: float, a2: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance where the gap is none, and its slope and half curvature in D, of what the patient spreads and the shifter's moments."""
    return inside + a2 / LEXAN_STOPPING**2, torch.tensor([2.0 * a1 / LEXAN_STOPPING, a0], dtype=torch.float64)
