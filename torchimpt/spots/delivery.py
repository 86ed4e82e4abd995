"""Delivery of a plan: spot order, seconds from a machine model, and monitor units per fraction.

Time of a fraction, discrete spot scanning with one energy layer after the other (after Shen et al., Med Phys 44:5081, 2017):

    T = T_energy (n_layers - n_beams + n_refills) + sum_spots (t_spot + max(|dx| / v_x, |dy| / v_y)) + N / rate + T_shifter n_shifted

with N the protons of the fraction, and n_shifted the beams with layers behind a range shifter, which is put in once in each. The rate is
one of protons, because monitor units are each vendor's own: those of this package (`Machine.protons_per_mu`) are another vendor's than that
paper's. A synchrotron fills its ring anew for every layer, and again where a layer needs more than a filling. Of the two scan axes the
slower one decides. Not modelled: the rate's fall with the energy behind a cyclotron's degrader, gantry rotation between fields, couch and
imaging. `MACHINES` says where each number is from, and which are approximate.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch

from torchimpt.checks import InputError, positive
from torchimpt.machine import Machine
from torchimpt.spots.spots import Spots

MANY = 3000
"""A layer of more spots is scanned in sweeps: the times between all its pairs would take a gigabyte at 6,000 spots."""

TIE = 1e-6
"""Weight of the faster axis in a scan path: on a lattice most steps are equally long in the slower one, and a path goes astray."""


@dataclass(frozen=True)
class DeliveryModel:
    """How fast a machine delivers.

    Attributes
    ----------
    energy_switch_s
        Seconds from one energy layer of a beam to the next.
    spot_s
        Seconds a spot costs besides scanning and irradiation: magnets settle and are verified.
    speed_x, speed_y
        Scan speeds in the isocentre plane, mm/s.
    protons_per_s
        Protons a second while the beam is on; 6.24e9 are 1 nA.
    spill_protons
        Protons of a synchrotron's filling: where a layer needs more, filling anew takes `energy_switch_s`. Infinite for a cyclotron.
    fractions
        The course's fractions: weights are the whole course's, time and spot MU a fraction's.
    min_mu
        Least MU of a spot in a fraction that the machine delivers; 0 for none.
    shifter_s
        Seconds to put a range shifter in, once a beam. APPROXIMATE: a drive in the nozzle takes a few seconds; by hand it is a minute.
    """

    energy_switch_s: float = 1.91
    spot_s: float = 1.93e-3
    speed_x: float = 5900.0
    speed_y: float = 19300.0
    protons_per_s: float = 5e9
    spill_protons: float = 1.25e10
    fractions: int = 35
    min_mu: float = 0.0
    shifter_s: float = 5.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("energy_switch_s", "spot_s", "min_mu", "shifter_s"):
                if not 0 <= value < float("inf"):
                    raise InputError(f"{name} must be zero or more, got {value}")
            elif name != "spill_protons" or value != math.inf:
                positive(name, value)

    def min_weight(self, spots: Spots, machine: Machine) -> torch.Tensor:
        """Least weight `(n_spots,)`, 10^6 protons of the course, that a delivered spot has; the MU of a fraction never fall below `min_mu`.

        Rounded up, so that a weight at its bound has the minimum MU, not one rounding less, whichever way its MU are computed in float64.
        """
        # five roundings lie between min_mu and the weight, and back
        exact = self.min_mu * self.fractions * machine.protons_per_mu(spots.energy.cpu()) * (1.0 + 4.0 * torch.finfo(torch.float64).eps)
        near = exact.to(spots.weight.dtype)
        up = torch.nextafter(near, torch.full_like(near, torch.inf))
        return torch.where(near.double() < exact, up, near).to(spots.weight.device)


MACHINES: dict[str, DeliveryModel] = {
    "synchrotron": DeliveryModel(),
    "cyclotron": DeliveryModel(energy_switch_s=0.6, spot_s=3e-3, speed_x=8e3, speed_y=8e3, protons_per_s=1.25e10, spill_protons=math.inf),
    "fast_cyclotron": DeliveryModel(energy_switch_s=0.1, spot_s=3e-3, speed_x=5e3, speed_y=2e4, protons_per_s=6e9, spill_protons=math.inf),
}
"""Machines by their name in a case file.

- `synchrotron`: Hitachi ProBeat V at the Mayo Clinic, measured by Shen et al. 2017: layer switch 1.91 s, magnet preparation and
  verification 1.93 ms a spot, 5.9 and 19.3 m/s, 2.0 nC (1.25e10 protons) of one acceleration. Their 8.7 MU/s are in the vendor's MU, whose
  protons they do not tell. APPROXIMATE: 5e9 protons/s (0.8 nA), which empties a filling in 2.5 s, within the spills of half a second to
  five that such rings have.
- `cyclotron`: layer switch 0.6 s towards lower energies and 8 m/s as the program OpenTPS (UCLouvain; SimpleBeamDeliveryTimings) has
  them, for an IBA Proteus as at its home. APPROXIMATE: 3 ms a spot, and 2 nA, of the 1 to 3 nA that scanned beams have at the nozzle.
- `fast_cyclotron`: PSI's Gantry 2 as it is usually quoted (Pedroni et al., Eur Phys J Plus 126:66, 2011): energies change in 0.1 s, 3 ms
  dead time a spot, 5 and 20 m/s, below 1 nA. All APPROXIMATE: rounded, and not checked against the paper.
"""


def delivered(spots: Spots, machine: Machine, model: DeliveryModel, share: float = 1e-3) -> torch.Tensor:
    """Which spots `(n_spots,)` are delivered: at or above the minimum MU, or without one above `share` of the largest weight."""
    weight = spots.weight.detach()
    if model.min_mu > 0:
        return (weight >= model.min_weight(spots, machine)) & (weight > 0)
    return weight > share * weight.max()


def scan_order(position: torch.Tensor, speed_x: float = 1.0, speed_y: float = 1.0, sweeps: int = 20) -> torch.Tensor:
    """Order `(n,)` of one layer's spots at `position` `(n, 2)` with a short scan time: nearest neighbour, then 2-opt until nothing gains.

    Time between two spots is `max(|dx| / speed_x, |dy| / speed_y)`, and of equal times the straighter way is taken. The path is open: it
    starts at the spot with the least y, then x. A local optimum of reversals, not always the shortest path. More than `MANY` spots are
    scanned in sweeps, to and fro.
    """
    points = position.detach().cpu().double().numpy() / (speed_x, speed_y)
    n = len(points)
    if n < 3:
        return torch.arange(n)
    if n > MANY:
        return torch.from_numpy(_sweeps(points))
    apart = np.abs(points[:, None] - points[None])
    apart = apart.max(axis=2) + TIE * apart.min(axis=2)
    at = int(np.lexsort((points[:, 0], points[:, 1]))[0])
    visited, left = [at], np.ones(n, dtype=bool)
    left[at] = False
    for _ in range(n - 1):
        at = int(np.where(left, apart[at], np.inf).argmin())
        left[at] = False
        visited.append(at)
    order = np.array(visited)
    for _ in range(sweeps):
        if not _two_opt(order, apart):
            break
    return torch.from_numpy(order)


def _sweeps(points: np.ndarray) -> np.ndarray:
    """Order of points `(n, 2)` in strips as wide as points lie apart, to and fro, along the axis that makes the shorter path."""
    low = points.min(axis=0)
    width = np.sqrt(np.ptp(points, axis=0).prod() / len(points)) or np.ptp(points) / len(points) or 1.0
    orders = []
    for along in (0, 1):
        strip = np.floor((points[:, 1 - along] - low[1 - along]) / width + 0.5).astype(np.int64)
        number = np.unique(strip, return_inverse=True)[1]
        orders.append(np.lexsort((np.where(number % 2, -1.0, 1.0) * points[:, along], number)))
    return min(orders, key=lambda order: np.abs(np.diff(points[order], axis=0)).max(axis=1).sum())


def _two_opt(order: np.ndarray, apart: np.ndarray) -> bool:
    """One sweep of reversals `order[i + 1 .. j]` that shorten the open path, in place; whether any did."""
    improved, n = False, len(order)
    for i in range(n - 2):
        a, b = order[i], order[i + 1]
        ends = order[i + 2 :]
        after = np.append(order[i + 3 :], -1)
        # the last spot has no successor: reversing up to it exchanges one stretch only
        gain = apart[a, b] - apart[a, ends] + np.where(after >= 0, apart[ends, after] - apart[b, after], 0.0)
        best = int(gain.argmax())
        if gain[best] > 1e-12 * apart[a, b] + 1e-15:
            order[i + 1 : i + 3 + best] = order[i + 1 : i + 3 + best][::-1].copy()
            improved = True
    return improved


def delivery_time(spots: Spots, machine: Machine, model: DeliveryModel | None = None) -> dict[str, float]:
    """What one fraction takes, of the spots that are delivered.

    Returns
    -------
    dict
        `seconds`, of which `energy_switch_s`, `refill_s`, `spot_s`, `scan_s`, `beam_on_s`, `shifter_s`;
        `mu` (whole course), `mu_per_fraction`, `min_spot_mu`
        (least of a fraction), `spots`, `energy_layers`, `scan_mm` (length of the scan paths).
    """
    model = model or DeliveryModel()
    mask = delivered(spots, machine, model)
    position, layer = spots.position.detach()[mask].cpu(), spots.layer[mask].cpu()
    mu = spots.weight.detach()[mask].cpu().double() / machine.protons_per_mu(spots.energy[mask].cpu())
    scan, length = 0.0, 0.0
    for number in layer.unique().tolist():
        own = position[layer == number].double()
        steps = own[scan_order(own, model.speed_x, model.speed_y)].diff(dim=0).abs()
        scan += float(torch.maximum(steps[:, 0] / model.speed_x, steps[:, 1] / model.speed_y).sum())
        length += float(steps.square().sum(1).sqrt().sum())
    protons = 1e6 * spots.weight.detach()[mask].cpu().double() / model.fractions
    of_layer = torch.zeros(spots.n_layers, dtype=torch.float64).index_add_(0, layer, protons)
    # what a rounding is over a filling needs no other
    refills = float((of_layer / model.spill_protons * (1.0 - 1e-9)).ceil().sub(1.0).clamp_min(0.0).sum())
    n_layers = layer.unique().numel()
    n_beams = spots.layer_beam.cpu()[layer].unique().numel()
    parts = {
        "energy_switch_s": model.energy_switch_s * (n_layers - n_beams),
        "spot_s": model.spot_s * len(layer),
        "scan_s": scan,
        "refill_s": model.energy_switch_s * refills,
        "beam_on_s": float(protons.sum()) / model.protons_per_s,
        "shifter_s": model.shifter_s * spots.layer_beam.cpu()[layer[spots.layer_shifted.cpu()[layer]]].unique().numel(),
    }
    return {
        "seconds": sum(parts.values()), **parts, "mu": float(mu.sum()), "mu_per_fraction": float(mu.sum()) / model.fractions,
        "min_spot_mu": float(mu.min()) / model.fractions if len(mu) else 0.0, "spots": len(layer), "energy_layers": n_layers,
        "scan_mm": length,
    }  # fmt: skip
