"""Relative stopping power (RSP) of a patient's voxels."""

from __future__ import annotations

from typing import Protocol

import torch

from torchimpt.hu_table import HuTable, default_hu_table
from torchimpt.patient import Patient


class WithTable(Protocol):
    """What may have an HU table of its own; a `Machine` is one."""

    @property
    def hu_table(self) -> HuTable | None:
        """The table, if there is one."""
        ...


def table_of(patient: Patient, machine: WithTable) -> HuTable:
    """The machine's table, else the patient's own, else the default."""
    return machine.hu_table or patient.hu_table or default_hu_table()


def relative_stopping_power(patient: Patient, machine: WithTable) -> torch.Tensor:
    """Relative stopping power of every voxel of a patient.

    Parameters
    ----------
    patient
        With its CT; where it has an ROI of the role external, everything outside that is set to zero (couch, masks and air take no part).
        ROIs with an `rsp` of their own have that, outside the body too; where two overlap, the later one's counts.
    machine
        Whose table may count (`table_of`).

    Returns
    -------
    float64 `(z, y, x)`.
    """
    table = table_of(patient, machine)
    external = patient.external
    unknown = torch.ones(patient.grid.shape, dtype=torch.bool) if external is None else external.mask.clone()
    rsp = torch.zeros(patient.grid.shape, dtype=torch.float64)
    for roi in patient.rois.values():
        if roi.rsp is not None:
            rsp[roi.mask] = roi.rsp
            unknown &= ~roi.mask
    rsp[unknown] = table(patient.hu[unknown])  # what is told is not looked up: metal lies above any table
    return rsp
