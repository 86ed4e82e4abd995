"""matRad's `.mat` files: patients and plans in, plans out.

matRad (H.-P. Wieser et al., Med Phys 44:2556, 2017; DKFZ) is a planning program in MATLAB. Its variables as they are here were read from
its sources (github.com/e0404/matRad, version 3.2); none of its code is here.

Frames: `ct.x`, `ct.y`, `ct.z` are LPS, mm. The gantry frame is ours with other axes: a ray's `rayPos_bev = [x 0 z]` is a spot at
`(x, z)` in the isocentre plane, and its second axis runs from the source on. Angles are IEC 61217, for a patient who lies head first
supine.
Isocentres are in the frame of `ct.x` (version 3), or count from one voxel before the first (version 2). Weights `resultGUI.w` are 10^6
particles of one fraction, in the order beam, ray, energy; doses in `resultGUI` are a fraction's, those of objectives the course's.
"""

from torchimpt.io.matrad.objectives import read_matrad_objectives
from torchimpt.io.matrad.patient import read_matrad
from torchimpt.io.matrad.plan import is_mat, read_matrad_plan

__all__ = ["is_mat", "read_matrad", "read_matrad_objectives", "read_matrad_plan"]
