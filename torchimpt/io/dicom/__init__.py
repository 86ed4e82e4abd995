"""DICOM RT files: patients (CT and structure set), ion plans and doses."""

from torchimpt.io.dicom.dataset import is_dicom
from torchimpt.io.dicom.dose import RTDose, read_rt_dose
from torchimpt.io.dicom.ion_plan import IonField, IonPlan, read_ion_plan
from torchimpt.io.dicom.patient import read_dicom
from torchimpt.io.dicom.structure_set import StructureSet, read_structure_set

__all__ = [
    "IonField",
    "IonPlan",
    "RTDose",
    "StructureSet",
    "is_dicom",
    "read_dicom",
    "read_ion_plan",
    "read_rt_dose",
    "read_structure_set",
]
