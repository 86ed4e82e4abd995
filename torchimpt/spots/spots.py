"""The plan itself: pencil-beam spots with their positions and weights as parameters.

Units of `physics.md`: positions in mm in the isocentre plane of the gantry frame (as DICOM's Scan Spot Position Map has
them), weights in 10^6 protons, energies in MeV. Spots are sorted by energy layer; a layer is one nominal energy in one beam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from torchimpt.checks import InputError, finite
from torchimpt.geometry import Beam

FARTHEST_SPOT = 1000.0
"""No spot lies farther off its beam's axis, mm: scanners reach 200."""

HIGHEST_ENERGY = 1000.0
"""No machine here has more, MeV."""


class Spots(nn.Module):
    """Spots of one plan.

    Parameters
    ----------
    position
        `(n_spots, 2)`, mm, `(x, y)` in the isocentre plane; its dtype is the plan's.
    weight
        `(n_spots,)`, 10^6 protons, not negative.
    layer
        `(n_spots,)` integers, ascending: the energy layer of each spot.
    layer_beam
        `(n_layers,)` integers, ascending: the beam of each layer, an index into `beams`.
    layer_energy
        `(n_layers,)`, nominal energy, MeV; stays float64 whatever the module is cast to.
    beams
        The fields, each with its isocenter set.
    layer_shifted
        `(n_layers,)` bool: which layers go through their beam's range shifter. None: none does.

    Attributes
    ----------
    position, weight
        `nn.Parameter`s. The weight's attribute `lower = 0.0` tells optimizers that honour it (`ProjectedCG`) where to stop, in copies and
        for a weight that is assigned, too; in the hands of others a weight may turn negative, and nothing here prevents that.
    layer, layer_beam, layer_energy, layer_shifted
        Buffers, as above.
    """

    layer: torch.Tensor
    layer_beam: torch.Tensor
    layer_energy: torch.Tensor
    layer_shifted: torch.Tensor

    def __init__(
        self,
        position: torch.Tensor,
        weight: torch.Tensor,
        layer: torch.Tensor,
        layer_beam: torch.Tensor,
        layer_energy: torch.Tensor,
        beams: Sequence[Beam],
        layer_shifted: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        beams = tuple(beams)
        if layer_shifted is None:
            layer_shifted = torch.zeros(layer_energy.shape, dtype=torch.bool)
        _check(position, weight, layer, layer_beam, layer_energy, beams, layer_shifted)
        self.beams = beams
        self.position = nn.Parameter(position.detach().clone())
        self.weight = nn.Parameter(weight.detach().to(position).clone())
        self.register_buffer("layer", layer.to(position.device, torch.int64).clone())
        self.register_buffer("layer_beam", layer_beam.to(position.device, torch.int64).clone())
        self.register_buffer("layer_energy", layer_energy.to(position.device, torch.float64).clone())
        self.register_buffer("layer_shifted", layer_shifted.to(position.device).clone())

    @classmethod
    def from_columns(
        cls,
        beams: Sequence[Beam],
        beam: Sequence[int] | torch.Tensor,
        energy: Sequence[float] | torch.Tensor,
        x: Sequence[float] | torch.Tensor,
        y: Sequence[float] | torch.Tensor,
        weight: Sequence[float] | torch.Tensor,
        dtype: torch.dtype = torch.float32,
        shifted: Sequence[bool] | torch.Tensor | None = None,
    ) -> Spots:
        """Spots from a list in any order: one entry a spot, `(n_spots,)` each.

        The result is sorted by beam, then by falling energy, those behind the beam's range shifter after the others; inside a layer the
        given order is kept.

        Parameters
        ----------
        beams
            The fields, each with its isocenter set.
        beam
            Index into `beams`, from 0.
        energy
            MeV; equal numbers share a layer.
        x, y
            Position in the isocentre plane, mm.
        weight
            10^6 protons.
        dtype
            Of position and weight.
        shifted
            Whether it goes through the beam's range shifter. None: no spot does.
        """
        energy, x, y, weight = (torch.as_tensor(v, dtype=torch.float64).flatten() for v in (energy, x, y, weight))
        beam = torch.as_tensor(beam, dtype=torch.int64).flatten()
        behind = torch.zeros_like(beam, dtype=torch.bool) if shifted is None else torch.as_tensor(shifted).flatten()
        sizes = {len(v) for v in (beam, energy, x, y, weight, behind)}
        if len(sizes) > 1:
            raise InputError(f"beam, energy, x, y and weight must have one entry a spot each, got lengths {sorted(sizes)}")
        finite("the spots' energies", energy)
        order = torch.argsort(energy, descending=True, stable=True)
        order = order[torch.argsort(2 * beam[order] + behind[order], stable=True)]
        beam, energy, behind = beam[order], energy[order], behind[order]
        start = torch.ones(len(order), dtype=torch.bool)
        start[1:] = (beam[1:] != beam[:-1]) | (energy[1:] != energy[:-1]) | (behind[1:] != behind[:-1])
        position = torch.stack((x, y), dim=1)[order].to(dtype)
        return cls(position, weight[order].to(dtype), start.cumsum(0) - 1, beam[start], energy[start], beams, behind[start])

    @property
    def n_spots(self) -> int:
        """Number of spots."""
        return self.weight.shape[0]

    @property
    def n_layers(self) -> int:
        """Number of energy layers over all beams."""
        return self.layer_energy.shape[0]

    @property
    def energy(self) -> torch.Tensor:
        """Nominal energy of each spot `(n_spots,)`, MeV, float64."""
        return self.layer_energy[self.layer]

    @property
    def beam(self) -> torch.Tensor:
        """Beam of each spot `(n_spots,)`, int64."""
        return self.layer_beam[self.layer]

    @property
    def shifted(self) -> torch.Tensor:
        """Whether each spot goes through its beam's range shifter `(n_spots,)`, bool."""
        return self.layer_shifted[self.layer]

    def layer_name(self, layer: int) -> str:
        """What tells a layer from its beam's others, for figures: `"98.3 MeV"`, `"98.3 MeV, shifter"`."""
        return f"{float(self.layer_energy[layer]):.1f} MeV" + (", shifter" if bool(self.layer_shifted[layer]) else "")

    def at(self, position: torch.Tensor, weight: torch.Tensor | None = None, layer: torch.Tensor | None = None) -> Spots:
        """Spots of the same layers and beams at other places; weights, and the layer of each spot, stay where they are not given."""
        weight, layer = self.weight if weight is None else weight, self.layer if layer is None else layer
        return Spots(position, weight, layer, self.layer_beam, self.layer_energy, self.beams, self.layer_shifted)

    def subset(self, mask: torch.Tensor) -> Spots:
        """The spots where `mask` `(n_spots,)` is True, as a new plan; layers that lose all their spots go, beams stay."""
        if mask.dtype != torch.bool or mask.shape != self.weight.shape:
            raise InputError(f"mask must be a bool tensor of shape ({self.n_spots},), got {mask.dtype} {tuple(mask.shape)}")
        kept, layer = torch.unique(self.layer[mask], return_inverse=True)
        of_layers = self.layer_beam[kept], self.layer_energy[kept], self.beams, self.layer_shifted[kept]
        return Spots(self.position[mask], self.weight[mask], layer, *of_layers)

    def weighted(self) -> Spots:
        """The spots that have a weight, as a new plan: the others cost time and give no dose. All of them where none has."""
        used = self.weight.detach() > 0
        return self.subset(used) if bool(used.any()) else self

    # torch makes new parameters without their attributes when it copies, converts (by a switch) or assigns a state: the bound goes along.

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As `nn.Module` does; the weight gets its bound."""
        super().register_parameter(name, param)
        if name == "weight" and param is not None:
            param.lower = 0.0  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.register_parameter("weight", self.weight)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Spots:
        # Module.float() and .half() cast every floating buffer; an energy rounded to float32 would no longer name its layer.
        energy = self.layer_energy
        super()._apply(fn, recurse)
        self.layer_energy = energy.to(self.layer_energy.device)
        self.register_parameter("weight", self.weight)
        return self

    def extra_repr(self) -> str:
        """`n_spots, n_layers, beams` for `print(spots)`."""
        return f"n_spots={self.n_spots}, n_layers={self.n_layers}, beams={len(self.beams)}"


def _check(
    position: torch.Tensor,
    weight: torch.Tensor,
    layer: torch.Tensor,
    layer_beam: torch.Tensor,
    layer_energy: torch.Tensor,
    beams: tuple[Beam, ...],
    layer_shifted: torch.Tensor,
) -> None:
    n_spots, n_layers = weight.numel(), layer_energy.numel()
    if n_spots == 0:
        raise InputError("a plan needs at least one spot, got none; check the spot list, the target and the spot spacing")
    if position.shape != (n_spots, 2) or weight.shape != (n_spots,) or layer.shape != (n_spots,) or layer_beam.shape != (n_layers,):
        raise InputError(
            "shapes must be position (n_spots, 2), weight and layer (n_spots,), layer_beam and layer_energy (n_layers,), got "
            f"{tuple(position.shape)}, {tuple(weight.shape)}, {tuple(layer.shape)}, {tuple(layer_beam.shape)}, {tuple(layer_energy.shape)}"
        )
    if layer_shifted.shape != layer_energy.shape or layer_shifted.dtype != torch.bool:
        got = f"{layer_shifted.dtype} {tuple(layer_shifted.shape)}"
        raise InputError(f"layer_shifted must be a bool tensor of shape ({n_layers},), got {got}")
    if not position.is_floating_point():
        raise TypeError(f"position must be a floating-point tensor, got {position.dtype}")
    finite("the spots' positions", position.detach())
    finite("the spots' weights", weight.detach())
    if (reach := float(position.detach().abs().max())) > FARTHEST_SPOT:
        raise InputError(f"a spot lies {reach:g} mm off its beam's axis, at most {FARTHEST_SPOT:g} are taken; positions must be in mm")
    if not (torch.isfinite(layer_energy) & (layer_energy > 0) & (layer_energy <= HIGHEST_ENERGY)).all():
        raise InputError(f"every layer's energy must be a positive number of MeV, {HIGHEST_ENERGY:g} at most, got {layer_energy.tolist()}")
    if (weight < 0).any():
        raise InputError(
            f"weights must not be negative (10^6 protons), got {int((weight < 0).sum())} that are, least {float(weight.min()):g}"
        )
    for name, index, count in (("layer", layer, n_layers), ("layer_beam", layer_beam, len(beams))):
        if int(index.min()) < 0 or int(index.max()) >= count:
            raise InputError(f"{name} must be 0 to {count - 1} (there are {count}), got {int(index.min())} to {int(index.max())}")
        if (index[1:] < index[:-1]).any():
            raise InputError(f"{name} must be ascending; Spots.from_columns sorts a list for you")
    for number, beam in enumerate(beams):
        if beam.isocenter is None:
            raise InputError(f"beam {number} (gantry {beam.gantry:g}) has no isocenter; use beam.at(point), or place_spots")
        if bool(layer_shifted[layer_beam == number].any()) and (beam.shifter is None or beam.shifter.distance is None):
            raise InputError(
                f"beam {number} (gantry {beam.gantry:g}) has energy layers behind a range shifter, but "
                f"{'no range shifter' if beam.shifter is None else 'its distance from the isocentre is not known'}; give the beam a "
                "RangeShifter with a thickness and a distance"
            )
