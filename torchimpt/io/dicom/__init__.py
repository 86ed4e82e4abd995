"""DICOM RT files: ion plans and doses."""

from torchimpt.io.dicom.dataset import is_dicom
from torchimpt.io.dicom.dose import RTDose, read_rt_dose
from torchimpt.io.dicom.ion_plan import IonField, IonPlan, read_ion_plan

__all__ = ["IonField", "IonPlan", "RTDose", "is_dicom", "read_ion_plan", "read_rt_dose"]
