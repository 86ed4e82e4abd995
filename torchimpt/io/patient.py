"""One way in to every kind of patient: from files, by a reader each, or built in, by name.

A further kind of file is a function from its path to a `Patient`, and an entry of `READERS`.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torchimpt.checks import InputError, nearest
from torchimpt.geometry import check_position
from torchimpt.io.dicom import read_dicom
from torchimpt.io.image import read_image
from torchimpt.io.matrad import read_matrad
from torchimpt.io.openkbp import read_openkbp
from torchimpt.patient import Patient
from torchimpt.phantoms import phantom

READERS: dict[str, Callable[..., Patient]] = {
    "openkbp": read_openkbp,
    "dicom": read_dicom,
    "matrad": read_matrad,
    "image": read_image,
}
"""Sources of files: from a folder or file, and what else one takes by name, to the patient."""

BUILT_IN: dict[str, Callable[..., Patient]] = {"phantom": phantom}
"""Sources of the package: from a name to the patient."""

SOURCES: Mapping[str, Callable[..., Patient]] = ChainMap(BUILT_IN, READERS)
"""Every source by its name in a case file."""


def check_source(source: str, path: str | os.PathLike | None, name: str | None) -> None:
    """Raise when a source has not what it takes: files a path, what is built in a name and no path."""
    if source not in SOURCES:
        raise InputError(f"there is no patient source '{source}'{nearest(source, SOURCES)}; there are {', '.join(SOURCES)}")
    if source in BUILT_IN and (name is None or path is not None):
        raise InputError(f"source = '{source}' takes a name, e.g. name = 'hn', and no path")
    if source in READERS and path is None:
        raise InputError(f"source = '{source}' needs a path")


def read_patient(
    source: str, path: str | os.PathLike | None = None, name: str | None = None, position: str | None = None, **own: Any
) -> Patient:
    """The patient that a case file's `[patient]` section names.

    Parameters
    ----------
    source
        A key of `SOURCES`.
    path
        Folder or file; for a phantom None.
    name
        Which phantom; otherwise the patient's name for titles and files, None for the one of the folder or file.
    position
        How the patient lies, in the place of what the files say.
    own
        What the source's reader takes besides, by name.
    """
    check_source(source, path, name)
    patient = SOURCES[source](name, **own) if source in BUILT_IN else SOURCES[source](path, **own)
    if source not in BUILT_IN and name is not None:
        patient = replace(patient, name=name)
    return patient if position is None else replace(patient, position=check_position(position))
