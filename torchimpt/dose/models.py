"""The dose models by name: a new one is its own folder and a line here."""

from __future__ import annotations

from collections.abc import Callable

from torchimpt.checks import InputError, nearest
from torchimpt.dose.model import DoseModel
from torchimpt.dose.pencil_beam.model import PencilBeam

DEFAULT_MODEL = "pencil_beam"
"""Each voxel's own ray."""

MODELS: dict[str, Callable[[str], DoseModel]] = {"pencil_beam": PencilBeam}
"""From a back-end's name to the model."""


def dose_model(name: str, backend: str = "auto") -> DoseModel:
    """The model of this name.

    Parameters
    ----------
    name
        A key of `MODELS`.
    backend
        `"auto"`, or one of the model's own.
    """
    if name not in MODELS:
        raise InputError(f"dose model must be one of {', '.join(MODELS)}, got '{name}'{nearest(name, MODELS)}")
    return MODELS[name](backend)
