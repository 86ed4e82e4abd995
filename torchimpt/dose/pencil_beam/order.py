"""An order of a beam's voxels in which those that a spot reaches come in runs: for matrices that store runs."""

from __future__ import annotations

import numpy as np

from torchimpt.dose.pencil_beam.tables import PairTables

TILE = 8.0
"""Side of a tile in the isocentre plane, mm. Measured on OpenKBP 109: 2.3 bytes an entry with sides of 4 to 8, 2.7 with 2."""


def run_order(tables: PairTables) -> np.ndarray:
    """The dose vector's entries in tiles of the beam's-eye view, within a tile those first that most layers reach, `(n,)`, int32.

    A layer reaches the front of each tile up to its range, so a spot has about one run in each tile of its circle.
    """
    reached = (tables.amplitude > 0).any(dim=0).sum(dim=0)
    p, q = ((t / TILE).floor() for t in (tables.p, tables.q))
    order = np.lexsort([t.cpu().numpy() for t in (-reached, p, q)])
    return tables.order.cpu().numpy()[order].astype(np.int32)
