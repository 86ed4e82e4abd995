"""One way in to every kind of patient: from files, by a reader each, or built in, by name.

A further kind of file is a function from its path to a `Patient`, and an entry of `READERS`.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import replace

from torchimpt.checks import InputError, nearest
from torchimpt.io.image import read_image
from torchimpt.io.matrad import read_matrad
from torchimpt.io.openkbp import read_openkbp
from torchimpt.patient import Patient
from torchimpt.phantoms import phantom

READERS: dict[str, Callable[..., Patient]] = {"openkbp": read_openkbp, "matrad": read_matrad, "image": read_image}
"""Sources of files: from a folder or file to the patient."""

BUILT_IN: dict[str, Callable[..., Patient]] = {"phantom": phantom}
"""Sources of the package: from a name to the patient."""

SOURCES: Mapping[str, Callable[..., Patient]] = ChainMap(BUILT_IN, READERS)
"""Every source by its name in a case file."""

LATER = {"dicom": "convert the CT and its ROIs to .mha and use source = 'image'"}
"""Sources that are not there yet, and what to do until then."""


def check_source(source: str, path: str | os.PathLike | None, name: str | None, spacing: float | None = None) -> None:
    """Raise when a source has not what it takes: files a path, what is built in a name and no path, and a spacing, where one is given."""
    if source in LATER and source not in SOURCES:
        raise InputError(f"source = '{source}' comes with a later version; until then {LATER[source]}")
    if source not in SOURCES:
        raise InputError(f"there is no patient source '{source}'{nearest(source, SOURCES)}; there are {', '.join(SOURCES)}")
    if source in BUILT_IN and (name is None or path is not None):
        raise InputError(f"source = '{source}' takes a name, e.g. name = 'hn', and no path")
    if source in READERS and path is None:
        raise InputError(f"source = '{source}' needs a path")
    if source in READERS and spacing is not None:
        raise InputError(f"source = '{source}' takes no spacing_mm, which is of built-in phantoms; set dose.grid_mm for another dose grid")


def read_patient(source: str, path: str | os.PathLike | None = None, name: str | None = None, spacing: float | None = None) -> Patient:
    """The patient that a case file's `[patient]` section names.

    Parameters
    ----------
    source
        A key of `SOURCES`.
    path
        Folder or file; for a phantom None.
    name
        Which phantom; otherwise the patient's name for titles and files, None for the one of the folder or file.
    spacing
        Voxel size of a phantom's CT, mm; None for its own.
    """
    check_source(source, path, name, spacing)
    if source in BUILT_IN:
        return SOURCES[source](name) if spacing is None else SOURCES[source](name, spacing)
    patient = SOURCES[source](path)
    return patient if name is None else replace(patient, name=name)
