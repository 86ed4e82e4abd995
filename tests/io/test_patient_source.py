"""One way in: every source of a case file, and what is no source."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Grid
from torchimpt.io import read_patient, write_image


def test_every_source_is_read(tmp_path: Path, shared: Path) -> None:
    grid = Grid((2, 3, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    write_image(tmp_path / "anna" / "ct.mha", torch.zeros(grid.shape), grid)
    assert read_patient("image", tmp_path / "anna").name == "anna"
    assert read_patient("openkbp", shared / "data" / "openkbp" / "pt_109").name == "pt_109"
    assert read_patient("matrad", str(shared / "data" / "matrad" / "TG119.mat"), name="C-shape").name == "C-shape"
    assert read_patient("phantom", name="water").name == "water"


def test_what_is_no_source() -> None:
    with pytest.raises(
        InputError, match=r"no patient source 'openkpb' \(did you mean 'openkbp'\?\); there are openkbp, dicom, matrad, image"
    ):
        read_patient("openkpb", "x")
    with pytest.raises(InputError, match=r"takes a name, .* and no path"):
        read_patient("phantom", "x", name="water")
    with pytest.raises(InputError, match="needs a path"):
        read_patient("image")
    with pytest.raises(InputError, match="takes a name, e"):
        read_patient("phantom")
    with pytest.raises(InputError, match="no phantom 'head'"):
        read_patient("phantom", name="head")
