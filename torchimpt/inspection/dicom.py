"""DICOM files, told series by series, ROI by ROI, beam by beam."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from torchimpt.checks import InputError
from torchimpt.inspection.sections import Region, Section, amount, point, region_of, regions_table, size, span, told
from torchimpt.io.dicom import IonField, read_ion_plan, read_rt_dose, read_structure_set
from torchimpt.io.dicom.catalog import CT, DOSE, ION_PLAN, PLAN, STRUCTURES, Catalog, Found
from torchimpt.io.dicom.choose import series_of
from torchimpt.io.dicom.ct import stack_of
from torchimpt.io.dicom.dataset import opened
from torchimpt.io.dicom.structure_set import StructureSet, outline

MOST_TOLD = 8
"""Broken files that are told one by one."""


def dicom_sections(found: Catalog, folder: Path) -> Iterator[Section]:
    """All that is told of a folder's DICOM files."""
    if found.series:
        yield told(folder, "CT", lambda: _series(found))
    for one in found.of(STRUCTURES):
        yield told(one.path, "structure set", lambda one=one: structures_section(one, found, folder)[0])  # type: ignore[misc]
    for one in found.of(ION_PLAN):
        yield told(one.path, "RT Ion Plan", lambda one=one: _ion_plan(one, found, folder))  # type: ignore[misc]
    for one in found.of(PLAN):
        yield told(one.path, "RT Plan", lambda one=one: _photon_plan(one, folder))  # type: ignore[misc]
    for one in found.of(DOSE):
        yield told(one.path, "RT Dose", lambda one=one: _dose(one, folder))  # type: ignore[misc]
    others = Counter(one.kind for one in found.files if one.kind not in (CT, STRUCTURES, ION_PLAN, PLAN, DOSE))
    scouts = len(found.of(CT)) - sum(map(len, found.series.values()))
    if scouts:
        others["CT scout view"] = scouts
    if others:
        yield Section("Other DICOM files", ("Kind", "Files"), tuple((kind, str(count)) for kind, count in others.most_common()))
    if found.broken:
        remarks = [f"{where(path, folder)}: {reason}" for path, reason in found.broken[:MOST_TOLD]]
        rest = len(found.broken) - MOST_TOLD
        yield Section("Files that begin like DICOM and cannot be read", remarks=(*remarks, *((f"and {rest} more",) if rest > 0 else ())))


def where(path: Path, folder: Path) -> str:
    """A file's path as seen from the folder."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) and path != folder else path.name


def _series(found: Catalog) -> Section:
    """The CT series."""
    rows, remarks = [], []
    for uid, files in found.series.items():
        first = files[0]
        pixels, place = f"{first.text('Columns')} x {first.text('Rows')}", "-"
        try:
            stack = stack_of(files)
            place = span(*sorted(float(one.header.ImagePositionPatient[2]) for one in (stack.files[0], stack.files[-1])))
            spacing = size((*stack.spacing, *((stack.step,) if len(files) > 1 else ())))
            if len(files) == 1:
                remarks.append(f"{uid}: one slice; a patient needs the whole series")
            elif not stack.even:
                remarks.append(f"{uid}: slices lie unevenly; they are averaged onto even ones of the least distance")
        except InputError as error:
            spacing = "-"
            remarks.append(f"{uid}: {error}")
        rows.append(
            (
                first.label or "-",
                first.text("PatientID") or "-",
                str(len(files)),
                pixels,
                spacing,
                place,
                first.text("PatientPosition") or "-",
                uid,
            )
        )
    columns = ("CT series", "Patient", "Slices", "Pixels", "Spacing, mm", "z, mm", "Position", "UID")
    return Section("CT", columns, tuple(rows), tuple(remarks))


def drawn_regions(drawn: StructureSet, files: Sequence[Found]) -> tuple[list[Region], list[str]]:
    """A structure set's ROIs, in the frame of its CT's slices where these are here, and what cannot be read of them."""
    regions, remarks = [], []
    stack = None
    if len(files) > 1:
        with suppress(InputError):  # told with the CT
            stack = stack_of(files)
    for roi in drawn.rois:
        try:
            region = outline(roi, drawn.step) if stack is None else outline(roi, stack.step, stack.origin, stack.axes, stack.w)
            regions.append(region_of(roi.name, roi.kind, roi.role, region))
        except InputError as error:
            remarks.append(str(error))
            regions.append(Region(roi.name, roi.kind, roi.role, 0.0))
    return regions, remarks


def structures_section(one: Found, found: Catalog, folder: Path) -> tuple[Section, list[Region], Sequence[Found]]:
    """A structure set, ROI by ROI; and the slices that it was drawn on, as far as they are here."""
    drawn = read_structure_set(one.path)
    fits = series_of(found.series, one)
    here = found.series[fits[0]] if len(fits) == 1 else ()
    regions, remarks = drawn_regions(drawn, here)
    if here:
        lost = len(drawn.images - {file.uid for file in here})
        remarks.append(f"Drawn on CT series {fits[0]}" + (f", of which {lost} of {len(drawn.images)} slices are not here" if lost else ""))
    elif fits:
        remarks.append(f"It may be drawn on any of {len(fits)} CT series of its frame of reference: set series in [patient]")
    else:
        remarks.append(f"Its CT is not here (series {drawn.series or 'not named'}, frame of reference {drawn.frame or 'not named'})")
    return regions_table(f"Structure set '{drawn.label}' ({where(one.path, folder)}, {drawn.uid})", regions, remarks), regions, here


def _ion_plan(one: Found, found: Catalog, folder: Path) -> Section:
    """An RT Ion Plan, beam by beam."""
    plan = read_ion_plan(one.path)
    rows = tuple(field_row(field) for field in plan.fields)
    columns = ("Beam", "Gantry, deg", "Couch, deg", "Energies, MeV", "Layers", "Spots", "Meterset", "Range shifter", "Isocentre, mm")
    total = " + ".join(f"{amount(float(field.meterset.sum()))} {field.unit}" for field in plan.fields)
    remarks = [f"{plan.fractions} fractions of {total}; patient {plan.fields[0].beam.lies}"]
    referred = {str(item.get("ReferencedSOPInstanceUID", "")) for item in one.header.get("ReferencedStructureSetSequence") or ()}
    if referred and not referred & {other.uid for other in found.files}:
        remarks.append("Its structure set is not here")
    unknown = sorted({device for field in plan.fields for device in field.devices if device != "range shifter"})
    for field in plan.fields:
        if field.beside is not None:
            remarks.append(f"{field.label} has an aperture: {field.beside:.1%} of its meterset are aimed beside the opening")
    if unknown == ["aperture"]:
        remarks.append("Apertures are not modelled; torchimpt dose computes its dose without, where [dose] ignore_apertures = true says so")
    elif unknown:
        remarks.append(f"No dose can be computed: what stands in the beam is not known here ({', '.join(unknown)})")
    else:
        remarks.append("Its dose: torchimpt dose CASE.toml --plan FILE --out RUN, with the machine that it was made for")
    return Section(f"RT Ion Plan '{plan.label}' ({where(one.path, folder)})", columns, rows, tuple(remarks))


def field_row(field: IonField) -> tuple[str, ...]:
    """A field of a plan, in the columns of its table."""
    layers = sorted(set(zip(field.energy.tolist(), field.shifted.tolist(), strict=True)))
    shifter = "-"
    if field.shifter is not None:
        place = "" if field.shifter.distance is None else f" at {field.shifter.distance:g} mm"
        shifter = f"{field.shifter.thickness:g} mm of water{place}, {int(field.shifted.sum())} spots"
    elif "range shifter" in field.devices:
        shifter = "without settings"
    energies, meterset = span(layers[0][0], layers[-1][0]), f"{amount(float(field.meterset.sum()))} {field.unit}"
    return (
        f"{field.number} {field.name}".strip(), f"{field.beam.gantry:g}", f"{field.beam.couch:g}", energies, str(len(layers)),
        f"{len(field.x):,}", meterset, shifter, point(field.beam.isocenter),
    )  # fmt: skip


def _photon_plan(one: Found, folder: Path) -> Section:
    """A plan of photons or electrons, which is shown and not computed."""
    with opened(one.path, "RT Plan") as plan:
        metersets = {
            int(beam.get("ReferencedBeamNumber", -1)): beam.get("BeamMeterset")
            for group in plan.get("FractionGroupSequence") or ()
            for beam in group.get("ReferencedBeamSequence") or ()
        }
        rows = []
        for beam in plan.get("BeamSequence") or ():
            points, meterset = beam.get("ControlPointSequence") or (), metersets.get(int(beam.get("BeamNumber", -1)))
            first = points[0] if points else beam
            numbers = [first.get(key) for key in ("GantryAngle", "PatientSupportAngle", "NominalBeamEnergy")]
            texts = [f"{beam.get('BeamNumber', '')} {beam.get('BeamName', '')}".strip(), str(beam.get("RadiationType", "-"))]
            texts += ["-" if number is None else f"{round(float(number), 3):g}" for number in numbers]
            rows.append((*texts, "-" if meterset is None else amount(float(meterset))))
        kinds = sorted({row[1].lower() for row in rows}) or ["photon"]
        remark = f"No dose can be computed: torchimpt plans with protons, and this is a plan of {' and '.join(kinds)}s"
        columns = ("Beam", "Radiation", "Gantry, deg", "Couch, deg", "Energy, MV", "Meterset, MU")
        return Section(f"RT Plan '{plan.get('RTPlanLabel', '')}' ({where(one.path, folder)})", columns, tuple(rows), (remark,))


def _dose(one: Found, folder: Path) -> Section:
    """An RT Dose."""
    dose = read_rt_dose(one.path)
    grid = dose.grid
    spans = [span(o, o + s * (n - 1)) for o, s, n in zip(grid.origin, grid.spacing, reversed(grid.shape), strict=True)]
    beam = "all" if dose.beam is None else str(dose.beam)
    row = (dose.summation or "-", beam, dose.kind, f"{float(dose.dose.max()):.3f}", size(reversed(grid.shape)), size(grid.spacing), *spans)
    columns = ("Sum", "Beam", "Kind", "Maximum, Gy", "Voxels", "Spacing, mm", "x, mm", "y, mm", "z, mm")
    return Section(f"RT Dose ({where(one.path, folder)})", columns, (row,))
