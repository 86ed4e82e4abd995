"""Delivery of a plan: spot order, seconds from a machine model, and monitor units per fraction.

Time of a fraction, discrete spot scanning with one energy layer after the other (Shen et al., Med Phys 44:5081, 2017):

    T = T_energy (n_layers - n_beams) + sum_spots (t_spot + max(|dx| / v_x, |dy| / v_y)) + MU / rate

The defaults are that paper's measured values of a synchrotron (Hitachi ProBeat V at the Mayo Clinic): layer switch 1.91 s, magnet
preparation and verification 1.93 ms a spot, 5.9 and 19.3 m/s, 8.7 MU/s. Their spot move adds the two axes' readiness in `t_spot`; here the
slower axis decides. Not modelled: spills that run empty, gantry rotation between fields, couch and imaging.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch

from torchimpt.checks import InputError, positive
from torchimpt.machine import Machine
from torchimpt.spots.spots import Spots

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
    mu_per_s
        Monitor units a second while the beam is on.
    fractions
        The course's fractions: weights are the whole course's, time and spot MU a fraction's.
    min_mu
        Least MU of a spot in a fraction that the machine delivers; 0 for none.
    """

    energy_switch_s: float = 1.91
    spot_s: float = 1.93e-3
    speed_x: float = 5900.0
    speed_y: float = 19300.0
    mu_per_s: float = 8.7
    fractions: int = 35
    min_mu: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("energy_switch_s", "spot_s", "min_mu"):
                if not 0 <= value < float("inf"):
                    raise InputError(f"{name} must be zero or more, got {value}")
            else:
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


def delivered(spots: Spots, machine: Machine, model: DeliveryModel, share: float = 1e-3) -> torch.Tensor:
    """Which spots `(n_spots,)` are delivered: at or above the minimum MU, or without one above `share` of the largest weight."""
    weight = spots.weight.detach()
    if model.min_mu > 0:
        return (weight >= model.min_weight(spots, machine)) & (weight > 0)
    return weight > share * weight.max()


def scan_order(position: torch.Tensor, speed_x: float = 1.0, speed_y: float = 1.0, sweeps: int = 20) -> torch.Tensor:
    """Order `(n,)` of one layer's spots at `position` `(n, 2)` with a short scan time: nearest neighbour, then 2-opt until nothing gains.

    Time between two spots is `max(|dx| / speed_x, |dy| / speed_y)`, and of equal times the straighter way is taken. The path is open: it
    starts at the spot with the least y, then x. A local optimum of reversals, not always the shortest path.
    """
    points = position.detach().cpu().double().numpy() / (speed_x, speed_y)
    n = len(points)
    if n < 3:
        return torch.arange(n)
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
        `seconds`, of which `energy_switch_s`, `spot_s`, `scan_s`, `beam_on_s`; `mu` (whole course), `mu_per_fraction`, `min_spot_mu`
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
    n_layers = layer.unique().numel()
    n_beams = spots.layer_beam.cpu()[layer].unique().numel()
    parts = {
        "energy_switch_s": model.energy_switch_s * (n_layers - n_beams),
        "spot_s": model.spot_s * len(layer),
        "scan_s": scan,
        "beam_on_s": float(mu.sum()) / model.fractions / model.mu_per_s,
    }
    return {
        "seconds": sum(parts.values()), **parts, "mu": float(mu.sum()), "mu_per_fraction": float(mu.sum()) / model.fractions,
        "min_spot_mu": float(mu.min()) / model.fractions if len(mu) else 0.0, "spots": len(layer), "energy_layers": n_layers,
        "scan_mm": length,
    }  # fmt: skip
