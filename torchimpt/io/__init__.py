"""Files in and out: patients, images, plans. Each reader returns a `Patient`, a `Spots` or a tensor on its grid."""

from torchimpt.io.dicom import read_dicom, read_ion_plan, read_rt_dose
from torchimpt.io.image import read_dose, read_image, write_image
from torchimpt.io.matrad import read_matrad, read_matrad_objectives
from torchimpt.io.openkbp import read_openkbp
from torchimpt.io.patient import read_patient
from torchimpt.io.plan import read_plan, write_plan

__all__ = [
    "read_dicom",
    "read_dose",
    "read_image",
    "read_ion_plan",
    "read_matrad",
    "read_matrad_objectives",
    "read_openkbp",
    "read_patient",
    "read_plan",
    "read_rt_dose",
    "write_image",
    "write_plan",
]
