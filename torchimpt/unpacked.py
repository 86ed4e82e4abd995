"""How much compressed data may hold, found out without keeping any of it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable

from torchimpt.checks import InputError

MOST_BYTES = 2 * 2**30
"""What a file may hold, unpacked: a CT of 1000 slices has 1 GB in single precision. A few kilobytes can be packed zeros of a terabyte."""


def check_inflated(path: str | os.PathLike, streams: Iterable[Iterable[bytes]], window: int = zlib.MAX_WBITS) -> None:
    """Raise where the deflated streams of a file hold more than `MOST_BYTES` together. Nothing of them is kept.

    Parameters
    ----------
    path
        The file, for the message.
    streams
        Each in pieces. One that is damaged ends there: its reader will tell.
    window
        As of `zlib.decompressobj`: negative for streams without a header.
    """
    total, step = 0, 2**20
    for pieces in streams:
        engine = zlib.decompressobj(window)
        for piece in pieces:
            try:
                while piece and not engine.eof:
                    total += len(engine.decompress(piece, step))
                    piece = engine.unconsumed_tail
                    if total > MOST_BYTES:
                        raise InputError(
                            f"{path} would take more than {MOST_BYTES / 1e9:.1f} GB when it is unpacked; it may be damaged: write it anew"
                        )
            except zlib.error:
                break
