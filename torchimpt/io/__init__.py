"""Files in and out: patients, images, plans. Each reader returns a `Patient`, a `Spots` or a tensor on its grid."""

from torchimpt.io.openkbp import read_openkbp

__all__ = ["read_openkbp"]
