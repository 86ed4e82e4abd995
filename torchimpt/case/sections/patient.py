"""Sections of the case file about whom to plan for, and on which machine: patient, ROIs, materials, tissues, machine."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from torchimpt.case.sections.base import Section
from torchimpt.case.values import (
    ExistingPath,
    Flag,
    OneOf,
    Pair,
    Real,
    Text,
    as_names,
)
from torchimpt.geometry import POSITIONS
from torchimpt.hu_table import DENSEST
from torchimpt.io.patient import SOURCES, check_source
from torchimpt.machine import READERS as MACHINE_READERS

_OF_SOURCES = {"structures": "structures", "series": "series", "spacing_mm": "spacing"}
"""Keys of [patient] that a source takes where it has a parameter of that name."""


class PatientConfig(Section):
    """[patient]: whom to plan for, a built-in phantom or a patient's files."""

    source: Annotated[str, OneOf(SOURCES)]
    """Where the patient comes from."""
    path: ExistingPath | None = None
    """Folder or file; not for a phantom."""
    name: Text | None = None
    """Name of the phantom; for the others a name for titles and files."""
    structures: Text | None = None
    """dicom: label, UID or file name of the structure set, where there are several whose CT is there."""
    series: Text | None = None
    """dicom: UID or description of the CT series, where the structure set does not tell."""
    position: Annotated[str, OneOf(POSITIONS)] | None = None
    """How the patient lies on the table: head or feet first (H, F), supine, prone or on the right or left side; omitted: as the CT says,
    HFS where it does not."""
    spacing_mm: Annotated[Real, Field(gt=0)] | None = None
    """phantom: voxel size of its CT; omitted: 3 mm."""

    @model_validator(mode="after")
    def _complete(self) -> PatientConfig:
        check_source(self.source, self.path, self.name)
        takes = inspect.signature(SOURCES[self.source]).parameters
        for name, parameter in _OF_SOURCES.items():
            if getattr(self, name) is not None and parameter not in takes:
                raise ValueError(f"source = '{self.source}' takes no {name}")
        return self

    @property
    def own(self) -> dict[str, Any]:
        """What the file gives of the source's own keys."""
        return {parameter: value for name, parameter in _OF_SOURCES.items() if (value := getattr(self, name)) is not None}


class RoiConfig(Section):
    """[[roi]]: a ROI made of others, of the patient's or of sections before: a PTV, a ring, the tissue beyond a distance."""

    name: Text
    """Its name, which no other ROI has."""
    of: Annotated[str | list[str], BeforeValidator(as_names)]
    """The ROI that it is made of, or a list (their union)."""
    margin_mm: Annotated[Real, Field(ge=-200, le=200)] = 0.0
    """Grown by so much in every direction, inside the body; shrunk where negative."""
    without: Annotated[str | list[str] | None, BeforeValidator(lambda value: None if value is None else as_names(value))] = None
    """A ROI, or a list, whose inside is left out."""
    role: Literal["oar", "target"] = "oar"
    """A target's objectives come before an organ's where they overlap ([optimizer] overlap)."""

    def parts(self) -> dict[str, list[str]]:
        """By key, the ROIs that it is made with."""
        given = {"of": self.of, "without": self.without or []}
        return {key: [value] if isinstance(value, str) else list(value) for key, value in given.items()}


class MaterialConfig(Section):
    """[[material]]: a ROI of known stopping power, whatever its CT numbers: an implant, a couch, contrast agent."""

    roi: Text
    """Name of the ROI."""
    rsp: Annotated[Real, Field(ge=0, le=DENSEST)]
    """Relative stopping power inside, water is 1; outside the body too."""


class TissueConfig(Section):
    """[[tissue]]: how a ROI responds to dose, for RBE models."""

    roi: Text
    """Name of the ROI."""
    alpha_beta_gy: Annotated[Real, Field(ge=0.1, le=50)]
    """Photons' alpha/beta inside; where two overlap, the later one's counts."""


_OF_READERS = ("plane_mm", "curves", "sad_mm", "air")
"""Keys of [machine] that a reader takes where it has a parameter of that name."""


class MachineConfig(Section):
    """[machine]: the generic machine, or one from a file, and how HU become stopping power."""

    name: Literal["generic"] | None = None
    """A machine that is part of the package; what is taken when no file is named."""
    format: Annotated[str, OneOf(MACHINE_READERS)] | None = None
    """Format of a machine from a file; needs path."""
    path: ExistingPath | None = None
    """The machine's file or folder."""
    plane_mm: Annotated[Real, Field(ge=0)] | None = None
    """emittance: how far upstream of the isocentre the table's plane lies."""
    curves: ExistingPath | None = None
    """emittance, bdl: folder of a csv machine, whose depth doses and widths are moved to the table's real energies."""
    sad_mm: Pair | None = None
    """emittance: distances of the virtual sources of x and y from the isocentre."""
    air: Flag | None = None
    """emittance, bdl: whether the table's energies are those on its plane, so that the air behind it takes some off; omitted: true."""
    hu_table: ExistingPath | None = None
    """CSV (hu, rsp), matRad's .hlut, or a scanner folder of MCsquare; omitted: the machine's or the CT's own, else the default table."""

    @model_validator(mode="before")
    @classmethod
    def _default(cls, data: Any) -> Any:
        """The generic machine where neither a name nor a file is given."""
        plain = isinstance(data, Mapping) and not {"name", "format", "path"} & data.keys()
        return {"name": "generic", **data} if plain else data

    @model_validator(mode="after")
    def _one(self) -> MachineConfig:
        if (self.format is None) != (self.path is None):
            raise ValueError("a machine from a file takes both format and path")
        if (self.name is None) == (self.format is None):
            raise ValueError("give either name = 'generic', or format and path")
        takes = {} if self.format is None else inspect.signature(MACHINE_READERS[self.format]).parameters
        what = "the generic machine" if self.format is None else f"format = '{self.format}'"
        for name in self.own:
            if name not in takes:
                raise ValueError(f"{what} takes no {name}")
        for name in _OF_READERS:
            if name in takes and takes[name].default is inspect.Parameter.empty and name not in self.own:
                raise ValueError(f"{what} needs {name}")
        return self

    @property
    def own(self) -> dict[str, Any]:
        """What the file gives of the format's own keys."""
        return {name: getattr(self, name) for name in _OF_READERS if getattr(self, name) is not None}
