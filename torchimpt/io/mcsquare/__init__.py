"""MCsquare's files: CT, beam data library, plan and configuration out, dose in.

MCsquare (K. Souris et al., Med Phys 43:1700, 2016; UCLouvain) is a Monte Carlo code for scanned protons. Its frames and formats as they are
here were read from its sources (github.com/e0404/MCsquare, Apache-2.0); none of its code is here.

Frame: origin at a corner of the CT, mm. x runs as LPS x (to the patient's left), z as LPS z, y against LPS y (to anterior, IEC's `Zf`). Its
arrays `(z, y, x)` run along z and y of that frame and against x: against LPS they are reversed in x and in y. Angles are IEC 61217:
gantry 0 comes from anterior, gantry 90 from the patient's left; a couch angle turns the frame's points about the vertical by minus itself.
Spots are at `(x, y)` in the isocentre plane, in the gantry frame, with one virtual source a scan direction: as in this package.
"""
