"""A proton machine: depth curves and optics by energy, virtual sources, and the calibration of its monitor units."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch

from torchimpt.checks import InputError
from torchimpt.constants import AIR_DENSITY, AIR_MASS_STOPPING
from torchimpt.geometry import RangeShifter
from torchimpt.hu_table import HuTable
from torchimpt.machine.curves import ScaledCurves
from torchimpt.machine.letd import layer_letd
from torchimpt.machine.optics import Optics
from torchimpt.machine.shifter import behind_shifter
from torchimpt.machine.tables import LayerTables
from torchimpt.physics.bragg import RANGE_POWER, range_from_energy

CHAMBER_GAP_CM = 1.0
"""Air gap of the monitor chamber that stands behind the nominal monitor unit, cm."""

CHARGE_PER_MU = 3e-9
"""Ionisation charge that the nominal monitor unit collects in that chamber, C."""

NEAREST_SOURCE, FARTHEST_SOURCE = 500.0, 1e7
"""Virtual sources lie between these, mm: a patient has to fit below the nearest, and from the farthest on rays are parallel."""

ROUNDING = 1e-6
"""Energies and ranges this close to the machine's ends, relative, are the ends themselves: float32 rounds as much."""


MOST_PROTONS = 1e7
"""Most protons in a monitor unit that are taken, 10^6; more is another unit, or damage."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a machine's own monitor counts.

    Attributes
    ----------
    energy
        `(n,)`, nominal, MeV, ascending.
    protons
        `(n,)`, 10^6 protons in one MU; linear in energy in between, the end values hold beyond the ends.
    """

    energy: torch.Tensor
    protons: torch.Tensor

    def __post_init__(self) -> None:
        low, high = float(self.protons.min()), float(self.protons.max())
        if not 0 < low <= high <= MOST_PROTONS:
            raise InputError(
                f"a monitor unit must have more than 0 and at most {MOST_PROTONS:g} 10^6 protons, got {low:g} to {high:g}; look at the "
                "calibration's unit and sign"
            )

    def at(self, energy: torch.Tensor) -> torch.Tensor:
        """10^6 protons in one MU at energies of any shape, MeV, float64."""
        return torch.as_tensor(np.interp(energy.cpu().numpy(), self.energy.numpy(), self.protons.numpy())).reshape(energy.shape)


@dataclass(frozen=True, eq=False)
class Machine:
    """A proton machine.

    Attributes
    ----------
    name
        For messages, plans and reports.
    sad
        Distance from the virtual source of each scan direction `(x, y)` to the isocentre, mm.
    curves
        Depth dose and lateral spread in water by energy.
    optics
        Spread in air by energy and distance from the isocentre.
    hu_table
        The machine's own HU-to-stopping-power table, if its files have one.
    calibration
        Of its monitor units, if its files have one.
    air_from
        `Zg` of the plane, mm, from which on the beam passes air that the curves leave out: it counts into the WEPL of every point, in the
        place of all that is outside the body. None: the curves have the air of their measurement in them, or are for none.
    shifter
        Its range shifter, if it has one.
    """

    name: str
    sad: tuple[float, float]
    curves: ScaledCurves
    optics: Optics
    hu_table: HuTable | None = None
    calibration: Calibration | None = None
    air_from: float | None = None
    shifter: RangeShifter | None = None

    def __post_init__(self) -> None:
        if len(self.sad) != 2 or not all(NEAREST_SOURCE <= s <= FARTHEST_SOURCE for s in self.sad):
            raise InputError(
                f"machine '{self.name}': sad must be two positive distances, {NEAREST_SOURCE:g} to {FARTHEST_SOURCE:g} mm, got {self.sad}"
            )

    @property
    def energy_min(self) -> float:
        """Lowest energy, MeV."""
        return float(self.curves.energy[0])

    @property
    def energy_max(self) -> float:
        """Highest energy, MeV."""
        return float(self.curves.energy[-1])

    @cached_property
    def fingerprint(self) -> str:
        """Of all tables but that of the HU: two machines that have the same one give the same dose, whatever they are called.

        Tables are rounded to 1e-4 of their largest value, a difference without consequence for a dose; what two processors make of the same
        formulas differs by 1e-12 and so has the same fingerprint. (A third of a step is added, so that round numbers are no borderline.)
        """
        curves, digest = self.curves, hashlib.sha256()
        parts = [
            torch.tensor(self.sad), torch.tensor([self.optics.start, self.optics.step]), self.optics.energy, self.optics.sigma,
            curves.energy, curves.r80, curves.integral, torch.tensor([curves.step]), curves.shape, curves.fraction,
            # where a component has no share its width is arbitrary
            curves.fraction * curves.variance,
        ]  # fmt: skip
        if self.optics.sigma_y is not None:
            parts.append(self.optics.sigma_y)
        if self.air_from is not None:
            parts.append(torch.tensor([self.air_from]))
        for table in parts:
            top = float(table.abs().max()) or 1.0
            steps = torch.floor(table.double() / top * 1e4 + 1.0 / 3.0).to(torch.int32)
            digest.update(f"{tuple(table.shape)} {top:.4g}".encode() + steps.numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def n_components(self) -> int:
        """Number of lateral Gaussians: 1, 2 with a nuclear halo, or as many as the machine's curves have."""
        return self.curves.variance.shape[0]

    def layers(
        self, energies: float | Sequence[float] | torch.Tensor, shifter: RangeShifter | None = None, shifted: torch.Tensor | None = None
    ) -> LayerTables:
        """Tables of energy layers, float64.

        Parameters
        ----------
        energies
            Nominal energies `(n_layers,)`, MeV, in any order, between `energy_min` and `energy_max`.
        shifter
            A range shifter in the beam, with its distance; its tables have one component more.
        shifted
            bool `(n_layers,)`: which layers go through it. None: all of them.
        """
        return _behind(self._layers(tuple(self._inside(energies).tolist())), shifter, shifted)

    @cached_property
    def _layers(self) -> Callable[[tuple[float, ...]], LayerTables]:
        """The tables of some energies, the last ones kept: a plan asks for those of its beams again and again."""

        @lru_cache(maxsize=16)
        def tables(energies: tuple[float, ...]) -> LayerTables:
            energy = torch.tensor(energies, dtype=torch.float64)
            optics = self.optics
            return self.curves.layers(energy, optics.start, optics.step, optics.variance(energy), optics.variance_y(energy))

        return tables

    def letd(self, energies: float | Sequence[float] | torch.Tensor) -> torch.Tensor:
        """LETd of all protons `(n_layers, n_samples)`, keV/um, at the depths of `layers` in open air; energies as there.

        The machine's own table where its files have one, else the physics' formula at each layer's range and straggling.
        """
        return self._letd(tuple(self._inside(energies).tolist()))

    @cached_property
    def _letd(self) -> Callable[[tuple[float, ...]], torch.Tensor]:
        """The LETd of some energies, the last ones kept."""
        return lru_cache(maxsize=16)(lambda energies: layer_letd(self.curves, self._layers(energies)))

    def letd_layers(
        self, energies: float | Sequence[float] | torch.Tensor, shifter: RangeShifter | None = None, shifted: torch.Tensor | None = None
    ) -> LayerTables:
        """Tables of energy layers whose depth dose is multiplied by its LETd, Gy mm^2 keV/um per 10^6 protons; arguments as of `layers`.

        What is computed with them is LETd x dose: the lateral spread of dose at a depth is that of its LET, too.
        A range shifter takes away its thickness of depth, as from the depth dose.
        """
        tables = self.layers(energies)
        return _behind(replace(tables, idd=tables.idd * self.letd(energies)), shifter, shifted)

    def r80(self, energy: float | Sequence[float] | torch.Tensor) -> torch.Tensor:
        """Distal 80 % depth in water, mm, of energies in MeV; shape as given."""
        return self.curves.range_at(self._inside(energy).reshape(torch.as_tensor(energy).shape))

    def peak_depth(self, energy: float | Sequence[float] | torch.Tensor) -> torch.Tensor:
        """Depth of the maximum of the depth dose in water, mm, of energies in MeV; shape as given."""
        return self.layers(energy).peak.reshape(torch.as_tensor(energy).shape)

    def width80(self, energy: float | Sequence[float] | torch.Tensor) -> torch.Tensor:
        """Width of the Bragg peak at 80 % of its maximum, mm of water, of energies in MeV; shape as given."""
        return self.layers(energy).width80.reshape(torch.as_tensor(energy).shape)

    def energy_for_range(self, mean_range: float | Sequence[float] | torch.Tensor) -> torch.Tensor:
        """Energy, MeV, whose distal 80 % depth is `mean_range`, mm of water; shape as given. An error beyond the machine's ranges."""
        depth = torch.as_tensor(mean_range, dtype=torch.float64)
        low, high = float(self.curves.r80[0]), float(self.curves.r80[-1])
        wrong = ~((depth >= low * (1 - ROUNDING)) & (depth <= high * (1 + ROUNDING)))
        if bool(wrong.any()):
            raise InputError(
                f"a range of {float(depth[wrong].flatten()[0]):.4g} mm of water is beyond machine '{self.name}', which reaches from "
                f"{low:.4g} to {high:.4g} mm ({self.energy_min:g} to {self.energy_max:g} MeV); choose a beam angle with less tissue "
                "before the target, or a machine with other energies"
            )
        return self.curves.energy_at(depth.clamp(low, high)).clamp(self.energy_min, self.energy_max)

    def protons_per_mu(self, energy: float | Sequence[float] | torch.Tensor) -> torch.Tensor:
        """10^6 protons in one monitor unit at energies in MeV, shape as given: the machine's own calibration, or a nominal one.

        One nominal MU is the charge `CHARGE_PER_MU` (3 nC) from a chamber with `CHAMBER_GAP_CM` (1 cm) of air, where a proton frees
        `S_air rho_air gap / W` pairs: S in water from the range rule, `S = 10 E^(1-p) / (alpha p)` MeV cm^2/g; air over water 0.885
        (PSTAR, 70 to 230 MeV, within 0.3 %); 1.2047e-3 g/cm^3; W = 34.44 eV (ICRU Report 90). 60 to 160 million protons, as clinical
        machines have it.
        """
        energy = torch.as_tensor(energy, dtype=torch.float64)
        if self.calibration is not None:
            return self.calibration.at(energy)
        stopping_water = 10.0 * energy / (RANGE_POWER * range_from_energy(energy))
        pairs = AIR_MASS_STOPPING * stopping_water * AIR_DENSITY * CHAMBER_GAP_CM / 34.44e-6
        return CHARGE_PER_MU / (pairs * 1.602176634e-19) / 1e6

    def _inside(self, energies: float | Sequence[float] | torch.Tensor) -> torch.Tensor:
        """Energies as `(n,)` float64 on the CPU, or an error that names the first one outside."""
        energy = torch.as_tensor(energies, dtype=torch.float64).detach().cpu().flatten()
        wrong = ~((energy >= self.energy_min * (1 - ROUNDING)) & (energy <= self.energy_max * (1 + ROUNDING)))
        if bool(wrong.any()):
            layer = int(wrong.nonzero()[0])
            raise InputError(
                f"energy layer {layer} of {float(energy[layer]):.5g} MeV is beyond machine '{self.name}', which has {self.energy_min:g} "
                f"to {self.energy_max:g} MeV (ranges {float(self.curves.r80[0]):.4g} to {float(self.curves.r80[-1]):.4g} mm of water); "
                "take the machine that the energies are of, or a plan for this one"
            )
        return energy.clamp(self.energy_min, self.energy_max)


def _behind(open_air: LayerTables, shifter: RangeShifter | None, shifted: torch.Tensor | None) -> LayerTables:
    """Tables with the layers `shifted` (None: all) behind a range shifter, if there is one."""
    if shifter is None or (shifted is not None and not bool(shifted.any())):
        return open_air
    return behind_shifter(open_air, shifter, torch.ones(open_air.n_layers, dtype=torch.bool) if shifted is None else shifted.cpu())
