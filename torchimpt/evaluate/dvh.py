"""Dose-volume histograms and the metrics read from them.

Every function takes the doses of one ROI's voxels, Gy, all of equal volume. Definitions follow ICRU Report 83 (2010):
`D_q` is the dose that the hottest q % of the volume receives at least, `V_d` the percentage of the volume that receives at least d Gy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from torchimpt.checks import InputError, nearest
from torchimpt.sums import mean

REFERENCE_ISODOSE = 0.95
"""The isodose that a conformity index looks at, as a fraction of the prescription (ICRU Reports 62 and 83)."""

_PLAIN = {"mean": "Gy", "max": "Gy", "min": "Gy", "hi": "", "ci": ""}
_FORMS = "d(q) with q in %, v(d) with d in Gy, mean, max, min, hi, ci"


def d(dose: torch.Tensor, *percent: float) -> list[float]:
    """`D_q`, Gy: the dose that the hottest q % of the voxels receive at least.

    The sorted doses are joined by straight lines, with the hottest voxel at q = 0 and the coldest at q = 100.

    Parameters
    ----------
    dose
        `(n_voxels,)`, Gy, at least one voxel.
    percent
        The q's, 0 to 100; one sort serves all.

    Examples
    --------
    >>> d(torch.linspace(60.0, 70.0, 101), 2, 50, 98)
    [69.80000305175781, 65.0, 60.20000076293945]
    """
    ranked = dose.flatten().sort(descending=True).values
    place = torch.tensor(percent, dtype=torch.float64) / 100.0 * (ranked.numel() - 1)
    below = place.floor().long()
    above = (below + 1).clamp(max=ranked.numel() - 1)
    low, high = (ranked[i.to(ranked.device)].to("cpu", torch.float64) for i in (below, above))
    return (low + (place - below) * (high - low)).tolist()


def v(dose: torch.Tensor, threshold: float) -> float:
    """`V_d`, %: the part of the voxels with at least `threshold` Gy."""
    return 100.0 * float((dose >= threshold).double().mean())


def homogeneity(dose: torch.Tensor) -> float:
    """`HI = (D2 - D98) / D50` (ICRU 83, section 3.7.1); 0 is perfectly even, and a ROI without dose has none: NaN."""
    d2, d50, d98 = d(dose, 2.0, 50.0, 98.0)
    return (d2 - d98) / d50 if d50 > 0 else float("nan")


def conformity(dose: torch.Tensor, body: torch.Tensor, prescription: float) -> float:
    """Paddick's conformity index `(T and R)^2 / (T R)` (J Neurosurg 93 suppl 3:219, 2000); 1 is perfect, 0 a miss.

    T is the target, R the region of the whole body inside the reference isodose, 95 % of the prescription.

    Parameters
    ----------
    dose
        `(n_voxels,)`, the target's doses, Gy.
    body
        `(n_body,)`, the doses of every voxel that has dose, the target's among them, Gy.
    prescription
        Gy.
    """
    level = REFERENCE_ISODOSE * prescription
    covered, irradiated = int((dose >= level).sum()), int((body >= level).sum())
    return covered**2 / (dose.numel() * irradiated) if irradiated else 0.0


@dataclass(frozen=True)
class Metric:
    """A number read from a ROI's doses: `d(95)`, `v(20.0)`, `mean`, `max`, `min`, `hi` or `ci`.

    Attributes
    ----------
    kind
        `"d"`, `"v"`, `"mean"`, `"max"`, `"min"`, `"hi"` or `"ci"`.
    argument
        q in % of a `d`, d in Gy of a `v`; None for the others.
    """

    kind: str
    argument: float | None = None

    @classmethod
    def parse(cls, text: str) -> Metric:
        """The metric written as in a case file, upper or lower case; an error names the forms that there are.

        >>> Metric.parse("D(95)").label, Metric.parse("v(20.5)").unit
        ('D95', '%')
        """
        plain = text.strip().lower()
        if plain in _PLAIN:
            return cls(plain)
        match = re.fullmatch(r"([dv])\(\s*([0-9]*\.?[0-9]+)\s*\)", plain)
        if match is None:
            raise InputError(f"metric '{text}' is none of {_FORMS}{nearest(plain, [*_PLAIN, 'd(95)', 'd(2)', 'v(20)'])}")
        kind, argument = match[1], float(match[2])
        if kind == "d" and argument > 100:
            raise InputError(f"metric '{text}': d(q) takes a percentage of the volume, 0 to 100")
        return cls(kind, argument)

    def __str__(self) -> str:
        return self.kind if self.argument is None else f"{self.kind}({self.argument:g})"

    @property
    def label(self) -> str:
        """For tables and figures: `D95`, `V20`, `Mean`, `HI`."""
        if self.argument is not None:
            return f"{self.kind.upper()}{self.argument:g}"
        return self.kind.upper() if self.kind in ("hi", "ci") else self.kind.capitalize()

    @property
    def unit(self) -> str:
        """`"Gy"`, `"%"`, or nothing for an index."""
        return {"d": "Gy", "v": "%"}.get(self.kind, _PLAIN.get(self.kind, ""))

    def __call__(self, dose: torch.Tensor, *, prescription: float | None = None, body: torch.Tensor | None = None) -> float:
        """The metric's value on the doses `(n_voxels,)`, Gy.

        Parameters
        ----------
        dose
            At least one voxel.
        prescription, body
            What `ci` needs besides: the prescription in Gy and the doses `(n_body,)` of the whole body.
        """
        if dose.numel() == 0:
            raise InputError(f"{self}: the ROI has no voxel")
        match self.kind:
            case "d":
                return d(dose, self.argument or 0.0)[0]
            case "v":
                return v(dose, self.argument or 0.0)
            case "mean":
                return float(mean(dose))
            case "max":
                return float(dose.max())
            case "min":
                return float(dose.min())
            case "hi":
                return homogeneity(dose)
            case _:
                if prescription is None or body is None:
                    raise InputError(
                        "metric 'ci' needs a prescription: give the ROI an objective of kind min_dose, min_dvh or uniform, "
                        "and the dose of the whole body"
                    )
                return conformity(dose, body, prescription)


def dose_axis(maximum: float, n_points: int = 400) -> torch.Tensor:
    """Doses from 0 to just above `maximum`, Gy, float64, in steps of 1, 2 or 5 times a power of ten, about `n_points` at most."""
    maximum = max(maximum, 1e-3)
    power = 10.0 ** torch.arange(-6, 6, dtype=torch.float64)
    steps = (power[:, None] * torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)).flatten()
    step = steps[steps * n_points >= maximum][0]
    return step * torch.arange(int(maximum / float(step)) + 2, dtype=torch.float64)


def dvh(dose: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """Cumulative DVH: the percentage of the voxels that receive at least each dose of the axis.

    Parameters
    ----------
    dose
        `(n_voxels,)`, Gy.
    axis
        `(n_points,)`, Gy.

    Returns
    -------
    `(n_points,)`, %, float64, falling from 100.
    """
    ranked = dose.flatten().to("cpu", torch.float64).sort().values
    below = torch.searchsorted(ranked, axis.contiguous())
    return 100.0 * (ranked.numel() - below).double() / ranked.numel()


@dataclass(frozen=True)
class Band:
    """What a DVH does over the scenarios, each `(n_points,)`, %: the nominal curve, and the lowest and highest volume at each dose."""

    nominal: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


def dvh_band(doses: Sequence[torch.Tensor], axis: torch.Tensor) -> Band:
    """The DVH's envelope over scenarios; the first of `doses` is the nominal one, each `(n_voxels,)`, Gy."""
    curves = torch.stack([dvh(dose, axis) for dose in doses])
    return Band(curves[0], curves.min(dim=0).values, curves.max(dim=0).values)


def common_axis(doses: Mapping[str, Mapping[str, torch.Tensor]], n_points: int = 400) -> torch.Tensor:
    """One dose axis that holds every ROI in every scenario: `doses[scenario][roi]` is `(n_voxels,)`, Gy."""
    top = max((float(dose.max()) for rois in doses.values() for dose in rois.values() if dose.numel()), default=0.0)
    return dose_axis(top, n_points)


def dvh_curves(
    doses: Mapping[str, Mapping[str, torch.Tensor]], n_points: int = 400
) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """`{scenario: {roi: (dose in Gy, volume in %)}}` on one axis, from `doses[scenario][roi]`: `(n_voxels,)`, Gy."""
    axis = common_axis(doses, n_points)
    return {scenario: {roi: (axis, dvh(dose, axis)) for roi, dose in rois.items()} for scenario, rois in doses.items()}
