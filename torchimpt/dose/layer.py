"""`PencilBeamDose`: the dose layer as users meet it, spots in, dose out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from torchimpt.checks import InputError, nearest
from torchimpt.dose.autograd import SpotDose
from torchimpt.dose.cutoff import DEFAULT_CUTOFF
from torchimpt.dose.models import DEFAULT_MODEL
from torchimpt.dose.operator import DoseOperator
from torchimpt.dose.scenarios import GRADIENTS, scenario_doses
from torchimpt.geometry import Beam
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.quantities import ConstantRBE
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.spots import Spots


class PencilBeamDose(nn.Module):
    """Differentiable pencil-beam dose, `dose(spots) -> (n_voxels,)`.

    Rays are traced and tables built at the first call, for the beams and layers of the spots given; a later call with the same
    layers reuses them, so moving and reweighting spots costs only the pair kernel.

    Parameters
    ----------
    patient
        CT and ROIs on the dose grid.
    machine
        Beam model.
    beams
        The fields; the spots must have been placed for these angles.
    scenario
        Setup shift and range scale; nominal by default.
    voxels
        Flat grid indices the dose is wanted at. None: the whole grid, zero outside the body.
    cutoff
        Lateral cut-off in sigmas.
    rbe
        Constant factor on physical dose.
    model
        A key of `torchimpt.dose.models.MODELS`. `"pencil_beam"`: each voxel's own ray.
    backend
        `"auto"`, `"numba"` (CPU) or `"torch"` (any device).
    gradient
        `"analytic"`: the hand-derived gradient, one pass, no stored pair. `"autograd"`: the same formula in plain torch,
        every pair stored; for comparison and for higher derivatives.

    Examples
    --------
    >>> import torchimpt as ti
    >>> patient, beams = ti.resample(ti.phantom("water"), 10.0), [ti.Beam(gantry=0.0)]
    >>> spots = ti.place_spots(patient, ti.machine.generic(), beams, patient.targets, spacing=20.0)
    >>> dose = PencilBeamDose(patient, ti.machine.generic(), beams)
    >>> dose(spots).sum().backward()  # the hand-derived gradient, for weights and positions in one pass
    >>> spots.weight.grad.shape == spots.weight.shape, spots.position.grad.shape == spots.position.shape
    (True, True)
    """

    def __init__(
        self,
        patient: Patient,
        machine: Machine,
        beams: Sequence[Beam],
        *,
        scenario: Scenario = NOMINAL,
        voxels: torch.Tensor | None = None,
        cutoff: float = DEFAULT_CUTOFF,
        rbe: float = 1.1,
        model: str = DEFAULT_MODEL,
        backend: str = "auto",
        gradient: str = "analytic",
    ) -> None:
        super().__init__()
        if gradient not in GRADIENTS:
            raise InputError(f"gradient must be one of {', '.join(GRADIENTS)}, got '{gradient}'{nearest(gradient, GRADIENTS)}")
        self.patient, self.machine, self.beams, self.scenario = patient, machine, tuple(beams), scenario
        self.cutoff, self.model, self.backend, self.gradient = cutoff, model, backend, gradient
        self.quantity = ConstantRBE(rbe)
        self.whole_grid = voxels is None
        self.voxels = patient.body.flatten().nonzero().flatten() if voxels is None else voxels
        self._key: tuple | None = None
        self._operator: DoseOperator | None = None

    def operator(self, spots: Spots) -> DoseOperator:
        """The dose operator for these spots' beams and layers, built when they change."""
        angles, placed = ([(b.gantry, b.couch) for b in beams] for beams in (self.beams, spots.beams))
        if angles != placed:
            raise InputError(f"the spots were placed for gantry and couch angles {placed}, this dose has {angles}")
        key = (
            spots.beams, tuple(spots.layer_energy.tolist()), tuple(spots.layer_beam.tolist()), tuple(spots.layer_shifted.tolist()),
            spots.layer.cpu().numpy().tobytes(), spots.weight.dtype, spots.weight.device,
        )  # fmt: skip
        if self._operator is None or key != self._key:
            self._operator = scenario_doses(
                self.patient, self.machine, spots, self.voxels, (self.scenario,), cutoff=self.cutoff, dtype=spots.weight.dtype,
                device=spots.weight.device, model=self.model, backend=self.backend,
            )[0]  # fmt: skip
            self._key = key
        return self._operator

    def forward(self, spots: Spots) -> torch.Tensor:
        """Dose `(n_voxels,)`, Gy, on the whole grid in `(z, y, x)` order, or at `voxels`."""
        operator = self.operator(spots)
        if self.gradient == "analytic":
            dose = SpotDose.apply(spots.position, spots.weight, operator)
        else:
            dose = operator.dense_dose(spots.position, spots.weight)
        dose = self.quantity.value(dose)
        if not self.whole_grid:
            return dose
        whole = torch.zeros(self.patient.grid.n_voxels, dtype=dose.dtype, device=dose.device)
        return whole.index_copy(0, self.voxels.to(dose.device), dose)
