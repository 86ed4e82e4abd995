"""Which structure set and which CT of a folder: by reference from one to the other, by the user's word, never by the first that comes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from torchimpt.checks import InputError, nearest
from torchimpt.io.dicom.catalog import STRUCTURES, Catalog, Found
from torchimpt.io.dicom.structure_set import references

Series = Mapping[str, Sequence[Found]]

logger = logging.getLogger(__name__)


def choose_structures(found: Catalog, folder: Path, said: str | None) -> Found | None:
    """The structure set: the one that `said` names by its label, name, UID or file, else the only one, or the only one whose CT is here;
    None where there is none.

    Raises
    ------
    InputError
        Where several fit, or none; it says what to set.
    """
    sets = found.of(STRUCTURES)
    if said is not None:
        fits = [one for one in sets if said in _names(one)]
        if not fits:
            names = [name for one in sets for name in _names(one)]
            has = f"it has {_listed(sets)}" if sets else "it has none"
            raise InputError(f"structures = '{said}': {folder} has no such structure set{nearest(said, names)}; {has}")
        if len(fits) > 1:
            raise InputError(f"structures = '{said}': {folder} has {len(fits)} of that name; set it to a UID: {_listed(fits)}")
        return fits[0]
    if len(sets) < 2:
        return sets[0] if sets else None
    of_ct = [one for one in sets if series_of(found.series, one)]
    if len(of_ct) == 1:
        logger.info("of %d structure sets that of %s is read, as the others' CT is not here", len(sets), of_ct[0].path)
        return of_ct[0]
    labels = Counter(one.label for one in sets)
    same = [label for label, count in labels.items() if count > 1]
    told = f" ({', '.join(f'{labels[label]} are named {label!r}' for label in same)}: set the UID)" if same else ""
    raise InputError(
        f"{folder} has {len(sets)} structure sets; set structures = '...' in [patient] to the label or UID of one{told}: {_listed(sets)}"
    )


def choose_series(found: Catalog, folder: Path, structures: Found | None, said: str | None) -> str:
    """The UID of the CT series: the one that `said` names by its UID or description, else the one that the structure set was drawn on,
    else the only one.
    """
    series = found.series
    if not series:
        kinds = Counter(one.kind for one in found.files)
        has = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6)) or "no DICOM file"
        hint = "; multi-frame CT cannot be read, convert it to single slices" if "Enhanced CT Image Storage" in kinds else ""
        raise InputError(f"{folder} has no CT slice (CT Image Storage); it has {has}{hint}")
    if said is not None:
        fits = [uid for uid, files in series.items() if said in (uid, files[0].label)]
        if len(fits) != 1:
            names = [name for uid, files in series.items() for name in (uid, files[0].label)]
            why = f"has {len(fits)} CT series of that name; set its UID" if fits else f"has no such CT series{nearest(said, names)}"
            raise InputError(f"series = '{said}': {folder} {why}: {_series_listed(series)}")
        own, frame = "" if structures is None else references(structures.header)[0], series[fits[0]][0].text("FrameOfReferenceUID")
        if structures is not None and own and own != frame:
            raise InputError(f"series = '{said}' has another frame of reference than structure set {structures.path}; choose others")
        return fits[0]
    if structures is not None:
        fits = series_of(series, structures)
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise InputError(
                f"structure set {structures.path} does not say which of {len(fits)} CT series of its frame of reference it was drawn on; "
                f"set series = '...' in [patient]: {_series_listed({uid: series[uid] for uid in fits})}"
            )
        wanted = references(structures.header)[1] or "not named"
        raise InputError(
            f"the CT that structure set {structures.path} was drawn on is not in {folder} (series {wanted}); export both together; "
            f"it has {_series_listed(series)}"
        )
    if len(series) > 1:
        raise InputError(
            f"{folder} has {len(series)} CT series and no structure set; set series = '...' in [patient]: {_series_listed(series)}"
        )
    return next(iter(series))


def series_of(series: Series, structures: Found) -> list[str]:
    """UIDs of the series that a structure set was drawn on: that it names, whose slices it names, or all of its frame of reference."""
    frame, own, images = references(structures.header)
    if own in series:
        return [own]
    by_slice = [uid for uid, files in series.items() if any(one.uid in images for one in files)]
    by_frame = [uid for uid, files in series.items() if frame and files[0].text("FrameOfReferenceUID") == frame]
    return by_slice or by_frame


def _names(one: Found) -> tuple[str, ...]:
    """What a structure set may be called by."""
    names = one.text("StructureSetLabel"), one.text("StructureSetName"), one.uid, one.path.name
    return tuple(name for name in names if name)


def _listed(sets: Sequence[Found]) -> str:
    return "; ".join(f"'{one.label}' {one.uid} in {one.path.name}" for one in sets[:8]) + ("; ..." if len(sets) > 8 else "")


def _series_listed(series: Series) -> str:
    told = [f"'{files[0].label}' {uid} of {len(files)} slices" for uid, files in list(series.items())[:8]]
    return "; ".join(told) + ("; ..." if len(series) > 8 else "")
