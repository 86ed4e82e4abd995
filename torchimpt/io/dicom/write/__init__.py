"""DICOM RT files out: CT, structure set, ion plan and doses, written by pydicom alone (SimpleITK's writer changes the process's locale)."""

from torchimpt.io.dicom.write.export import Exported, export_dicom
from torchimpt.io.dicom.write.identity import Identity, carried_over, new_identity

__all__ = ["Exported", "Identity", "carried_over", "export_dicom", "new_identity"]
