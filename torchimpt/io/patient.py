"""One way in to every kind of patient."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from torchimpt.checks import InputError, nearest
from torchimpt.io.image import read_image
from torchimpt.io.matrad import read_matrad
from torchimpt.io.openkbp import read_openkbp
from torchimpt.patient import Patient
from torchimpt.phantoms import phantom

READERS: dict[str, Callable[[str | os.PathLike], Patient]] = {"openkbp": read_openkbp, "matrad": read_matrad, "image": read_image}
SOURCES = (*READERS, "phantom")
LATER = {"dicom": "convert the CT and its ROIs to .mha and use source = 'image'"}
"""Sources that are not there yet, and what to do until then."""


def read_patient(source: str, path: str | os.PathLike | None = None, name: str | None = None) -> Patient:
    """The patient that a case file's `[patient]` section names.

    Parameters
    ----------
    source
        `"openkbp"`, `"matrad"`, `"image"` or `"phantom"`.
    path
        Folder or file; for a phantom None.
    name
        Which phantom; otherwise the patient's name for titles and files, None for the one of the folder or file.
    """
    if source in LATER:
        raise InputError(f"source = '{source}' comes with a later version; until then {LATER[source]}")
    if source not in SOURCES:
        raise InputError(f"there is no patient source '{source}'{nearest(source, SOURCES)}; there are {', '.join(SOURCES)}")
    if source == "phantom":
        if name is None:
            raise InputError("source = 'phantom' needs a name, e.g. name = 'hn'")
        return phantom(name)
    if path is None:
        raise InputError(f"source = '{source}' needs a path")
    patient = READERS[source](path)
    return patient if name is None else replace(patient, name=name)
