"""Are ROIs as large as other programs say that read the same contours?

    python experiments/dicom_volumes.py --dicompyler /tmp/dcvenv/bin/python

`--dicompyler` is a Python that has dicompyler-core 0.5.6 (with pydicom < 3, so not this one: `pip install dicompyler-core "pydicom<3"
"numpy<2" shapely`); plastimatch is Debian's. The clinical structure set of dicompyler-core is read (../shared/data/dicom/dicompyler), and
RayStation's of a block. What dicompyler-core calls a structure's volume takes half of the first and the last plane; its DVHs take them
whole, as plastimatch does and this package: the table has all. Takes half a minute.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian

from torchimpt.io.dicom import read_structure_set
from torchimpt.io.dicom.structure_set import StructureSet, outline
from torchimpt.runs.about import about

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "dicom"

THEIRS = """
import json, sys, warnings
warnings.simplefilter("ignore")
from dicompylercore import dicomparser, dvhcalc
file = dicomparser.DicomParser(sys.argv[1])
found = {}
for number, roi in file.GetStructures().items():
    planes = file.GetStructureCoordinates(number)
    if planes and all(c["type"] == "CLOSED_PLANAR" for plane in planes.values() for c in plane):
        step = file.CalculatePlaneThickness(planes)
        whole = file.CalculateStructureVolume(planes, step)
        dvh = dvhcalc.get_dvh(sys.argv[1], sys.argv[2], number, calculate_full_volume=True)
        found[roi["name"]] = [whole, float(dvh.volume)]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Config:
    """The flags."""

    dicompyler: str = ""


def by_dicompyler(python: str, drawn: StructureSet, folder: Path) -> dict[str, list[float]]:
    """dicompyler-core's volumes, cm3: of the structure, and of its DVH in a dose that covers all."""
    file = dcmread(DATA / "topas_demo" / "rtdose.dcm")
    boxes = np.stack([outline(roi, drawn.step).box for roi in drawn.rois if roi.contours])
    low, high = boxes[:, 0].min(axis=0) - 10.0, boxes[:, 1].max(axis=0) + 10.0
    count = np.ceil((high - low) / [2.5, 2.5, drawn.step]).astype(int)
    levels = sorted({float(points[0, 2]) for roi in drawn.rois for points in roi.contours})
    file.Columns, file.Rows, file.NumberOfFrames = int(count[0]), int(count[1]), len(levels)
    file.ImagePositionPatient, file.PixelSpacing = [float(low[0]), float(low[1]), levels[0]], [2.5, 2.5]
    file.GridFrameOffsetVector = [level - levels[0] for level in levels]
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.DoseGridScaling = 15, 0.01
    file.PixelData = np.full((len(levels), count[1], count[0]), 100, dtype="<u2").tobytes()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.save_as(folder / "rd.dcm")
    done = subprocess.run([python, "-c", THEIRS, drawn.path, str(folder / "rd.dcm")], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def by_plastimatch(drawn: StructureSet, folder: Path) -> dict[str, float]:
    """plastimatch's volumes, cm3: of masks on voxels of 1 mm in the planes of the contours."""
    boxes = np.stack([outline(roi, drawn.step).box for roi in drawn.rois if roi.contours])
    low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
    levels = sorted({float(points[0, 2]) for roi in drawn.rois for points in roi.contours})
    size = (1.0, 1.0, drawn.step)
    origin = (low[0] - 5.0, low[1] - 5.0, levels[0] - 2 * drawn.step)
    dim = (int(high[0] - low[0]) + 11, int(high[1] - low[1]) + 11, round((levels[-1] - levels[0]) / drawn.step) + 5)
    flags = {"--origin": origin, "--spacing": size, "--dim": dim}
    command = ["plastimatch", "convert", "--input", drawn.path, "--prefix-format", "mha", "--output-prefix", str(folder / "masks")]
    command += [part for key, value in flags.items() for part in (key, " ".join(map(str, value)))]
    subprocess.run(command, capture_output=True, check=True)
    found = {}
    for file in (folder / "masks").glob("*.mha"):
        image = sitk.ReadImage(str(file))
        found[file.stem] = float((sitk.GetArrayFromImage(image) != 0).sum() * np.prod(image.GetSpacing())) / 1000.0
    return found


def main(config: Config) -> None:
    """Print the table."""
    print(about())
    for path in (DATA / "dicompyler" / "rtss.dcm", next((DATA / "ramp_full").glob("RS*.dcm"))):
        drawn = read_structure_set(path)
        with tempfile.TemporaryDirectory() as name:
            theirs = by_dicompyler(config.dicompyler, drawn, Path(name)) if config.dicompyler else {}
            masks = by_plastimatch(drawn, Path(name))
        print(f"\n{path.name}: cm3\n{'':18}{'ours':>10}{'less half ends':>16}{'dicompyler':>12}{'its DVH':>10}{'plastimatch':>13}")
        for roi in drawn.rois:
            region = outline(roi, drawn.step)
            if not region.planes:
                continue
            planes = [plane.area * (plane.high - plane.low) / 1000.0 for plane in region.planes]
            halved = region.volume / 1000.0 - 0.5 * (planes[0] + planes[-1])
            row = [
                region.volume / 1000.0,
                halved,
                *theirs.get(roi.name, [np.nan] * 2),
                masks.get(roi.name.replace(" ", "_"), masks.get(roi.name, np.nan)),
            ]
            print(f"{roi.name:18}" + "".join(f"{v:{w}.3f}" for v, w in zip(row, (10, 16, 12, 10, 13), strict=True)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dicompyler", default=Config.dicompyler)
    main(Config(**vars(parser.parse_args())))
