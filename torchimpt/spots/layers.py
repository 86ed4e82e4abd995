"""Energy layers of a beam: depths of Bragg peaks from the deepest to the shallowest, in open air and behind a range shifter."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from torchimpt.checks import InputError
from torchimpt.geometry import RangeShifter
from torchimpt.machine import Machine

MOST_LAYERS = 1000
"""Energy layers of a beam: 0.3 mm of water apart over 300 mm, a tenth of the narrowest Bragg peak's width."""

_ENERGIES = 65
"""Energies at which a machine's peak depth and width are read; between them both are smooth enough for a straight line."""


@dataclass(frozen=True, eq=False)
class BeamLayers:
    """A beam's layers, peaks falling in depth.

    Attributes
    ----------
    energy
        `(n_layers,)`, MeV.
    peak, half
        `(n_layers,)`, mm of water in the patient: depth of the peak, and half of the layer's step.
    shifted
        `(n_layers,)` bool: which go through the range shifter.
    """

    energy: torch.Tensor
    peak: torch.Tensor
    half: torch.Tensor
    shifted: torch.Tensor

    def __add__(self, shallower: BeamLayers) -> BeamLayers:
        """These layers and then others."""
        return BeamLayers(*(torch.cat((getattr(self, f.name), getattr(shallower, f.name))) for f in fields(self)))


def beam_layers(
    machine: Machine, shifter: RangeShifter | None, spacing: float | str, depths: tuple[float, float, float], label: str
) -> BeamLayers:
    """The layers that cover a span of depths.

    Parameters
    ----------
    machine, shifter
        Whose peaks; what is in the beam, with its rule.
    spacing
        `"bragg80"` or mm of water, as for `place_spots`.
    depths
        mm of water: where the margin begins, where the target itself does, where the margin ends. A shifter that is taken where it is
        needed is so for the target; once there, it covers the margin, too.
    label
        The beam's, for messages.
    """
    shallow, surface, deep = depths
    peaks = _Peaks(machine, spacing)
    if shifter is None:
        return peaks.stack(shallow, deep, label)
    behind = _Peaks(machine, spacing, shifter.thickness)
    if shifter.rule == "all":
        return behind.stack(shallow, deep, label)
    if not peaks.too_deep_for(deep):
        open_air = peaks.stack(shallow, deep, label)
        if surface >= float(open_air.peak[-1] - open_air.half[-1]):
            return open_air
        if shifter.rule == "layers":
            # what lies before the shallowest peak without a shifter goes on behind it, by the same steps
            open_air = peaks.stack(surface, deep, label, clamp=False)
            return open_air + behind.stack(shallow, float(open_air.peak[-1] - 2.0 * open_air.half[-1]), label)
    return behind.stack(shallow, deep, label)


class _Peaks:
    """Depths of a machine's Bragg peaks behind `thickness` mm of water: which layers a span of depths needs, and with which energies."""

    def __init__(self, machine: Machine, layer_spacing: float | str, thickness: float = 0.0) -> None:
        self.machine, self.thickness = machine, thickness
        low, high = machine.energy_min, machine.energy_max
        energies = torch.linspace(low, high, _ENERGIES if high > low else 1, dtype=torch.float64)
        tables = machine.layers(energies)
        self.depth, self.behind = tables.peak - thickness, tables.r80 - tables.peak
        self.step = tables.width80 if isinstance(layer_spacing, str) else torch.full_like(tables.peak, layer_spacing)

    @property
    def lowest(self) -> float:
        """The shallowest peak in the patient, mm of water."""
        return max(float(self.depth[0]), 0.0) if self.thickness else float(self.depth[0])

    def _at(self, values: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        if len(self.depth) == 1:
            return values.expand_as(depth)
        right = torch.searchsorted(self.depth, depth).clamp(1, len(self.depth) - 1)
        share = (depth - self.depth[right - 1]) / (self.depth[right] - self.depth[right - 1])
        return values[right - 1] + share * (values[right] - values[right - 1])

    def energy(self, peak: torch.Tensor) -> torch.Tensor:
        """Energies, MeV, whose peaks lie at these depths, mm of water."""
        shortest, longest = self.machine.r80([self.machine.energy_min, self.machine.energy_max]).tolist()
        return self.machine.energy_for_range((peak + self.thickness + self._at(self.behind, peak)).clamp(shortest, longest))

    def too_deep_for(self, deep: float) -> bool:
        """Whether the shallowest peak is deeper than all that is wanted."""
        return deep < self.lowest - 0.5 * float(self.step[0])

    def stack(self, shallow: float, deep: float, label: str, clamp: bool = True) -> BeamLayers:
        """Layers from `deep` until `shallow` is covered; the last one at the machine's shallowest peak, unless `clamp` is False."""
        lowest, highest = self.lowest, float(self.depth[-1])
        name = f"machine '{self.machine.name}'" + (f" behind {self.thickness:g} mm of range shifter" if self.thickness else "")
        if highest <= 0.0:
            raise InputError(
                f"{label}: a range shifter of {self.thickness:g} mm of water stops all protons of machine '{self.machine.name}', whose "
                f"deepest peak is at {highest + self.thickness:.1f} mm; take a thinner one"
            )
        if deep > highest:
            thinner = "a thinner range shifter, " if self.thickness else ""
            raise InputError(
                f"{label}: the deepest layer needs its peak at {deep:.1f} mm of water (margin and scenarios included), but {name} reaches "
                f"{highest:.1f} mm at its highest energy, {self.machine.energy_max:g} MeV; choose a beam angle with less tissue before the "
                f"target, a smaller margin, {thinner}or a machine with higher energies"
            )
        if self.too_deep_for(deep):
            raise InputError(
                f"{label}: the whole target lies within {deep:.1f} mm of water of the surface, but {name} has its shallowest peak at "
                f"{lowest:.1f} mm ({self.machine.energy_min:g} MeV); a range shifter (range_shifter_mm), or a lower energy, would help"
            )
        peak, half = [], []
        depth = max(deep, lowest)
        while True:
            step = float(self._at(self.step, torch.tensor(depth, dtype=torch.float64)))
            peak.append(depth)
            half.append(0.5 * step)
            if depth - 0.5 * step <= shallow or depth == lowest or (not clamp and depth - step < lowest):
                break
            if len(peak) == MOST_LAYERS:
                span = deep - max(shallow, lowest)
                raise InputError(
                    f"{label}: a layer_spacing of {step:g} mm of water makes {span / step + 1:.2g} energy layers over {span:.0f} mm, "
                    f"at most {MOST_LAYERS:,} are placed; give {math.ceil(100 * span / MOST_LAYERS) / 100:g} mm or more, or 'bragg80'"
                )
            depth = max(depth - step, lowest)
        peaks = torch.tensor(peak, dtype=torch.float64)
        shifted = torch.full(peaks.shape, self.thickness > 0)
        return BeamLayers(self.energy(peaks), peaks, torch.tensor(half, dtype=torch.float64), shifted)
