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
    """The HU table that counts: the machine's, then the patient's own, then the default."""
    return machine.hu_table or patient.hu_table or default_hu_table()


def looked_up(patient: Patient) -> torch.Tensor:
    """Mask `(z, y, x)` of the voxels whose stopping power comes from the HU table: the body less the ROIs with an `rsp` of their own."""
    mask = patient.body.clone()
    for roi in patient.rois.values():
        if roi.rsp is not None:
            mask &= ~roi.mask
    return mask


def relative_stopping_power(patient: Patient, machine: WithTable) -> torch.Tensor:
    """Relative stopping power of every voxel of a patient.

    Parameters
    ----------
    patient
        With its CT; where it has an ROI of the role external, everything outside that is set to zero (couch, masks and air take no part).
        ROIs with an `rsp` of their own have that, outside the body too; where two overlap, the later one's counts.
    machine
        Its table counts first (`table_of`).

    Returns
    -------
    float64 `(z, y, x)`.
    """
    rsp = torch.zeros(patient.grid.shape, dtype=torch.float64)
    for roi in patient.rois.values():
        if roi.rsp is not None:
            rsp[roi.mask] = roi.rsp
    unknown = looked_up(patient)
    rsp[unknown] = table_of(patient, machine)(patient.hu[unknown])  # what is told is not looked up: metal lies above any table
    return rsp
