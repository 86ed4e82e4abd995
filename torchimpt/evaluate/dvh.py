"""Dose-volume histograms and the metrics read from them.

Every function takes the doses of one ROI, Gy: of its voxels, all of equal volume, or `VolumeDoses`, of points that stand for different
volumes. Definitions follow ICRU Report 83 (2010):
`D_q` is the dose that the hottest q % of the volume receives at least, `V_d` the percentage of the volume that receives at least d Gy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from torchimpt.checks import InputError, nearest
from torchimpt.sums import mean, total

REFERENCE_ISODOSE = 0.95
"""The isodose that a conformity index looks at, as a fraction of the prescription (ICRU Reports 62 and 83)."""

_PLAIN = {"mean": "Gy", "max": "Gy", "min": "Gy", "hi": "", "ci": ""}
_FORMS = "d(q) with q in %, v(d) with d in Gy, mean, max, min, hi, ci"


@dataclass(frozen=True)
class VolumeDoses:
    """Doses `(n_points,)`, Gy, at points that stand for volumes `(n_points,)`, in voxels, positive."""

    dose: torch.Tensor
    volume: torch.Tensor


RoiDose = torch.Tensor | VolumeDoses
"""One ROI's doses."""


def values(dose: RoiDose) -> torch.Tensor:
    """The doses, whatever their volumes."""
    return dose.dose if isinstance(dose, VolumeDoses) else dose


def voxel_count(dose: RoiDose) -> float:
    """The ROI's volume, in voxels."""
    return float(total(dose.volume)) if isinstance(dose, VolumeDoses) else dose.numel()


def mean_dose(dose: RoiDose) -> float:
    """Mean over the volume, Gy."""
    return float(total(dose.dose * dose.volume)) / voxel_count(dose) if isinstance(dose, VolumeDoses) else float(mean(dose))


def volume_from(dose: RoiDose, threshold: float) -> float:
    """Volume with at least `threshold` Gy, in voxels."""
    if isinstance(dose, VolumeDoses):
        return float(total(dose.volume * (dose.dose >= threshold)))
    return float((dose >= threshold).double().sum())


def d(dose: RoiDose, *percent: float) -> list[float]:
    """`D_q`, Gy: the dose that the hottest q % of the volume receives at least.

    The sorted doses are joined by straight lines, with the hottest voxel at q = 0 and the coldest at q = 100, and in between each at the
    middle of its own volume.

    Parameters
    ----------
    dose
        At least one voxel.
    percent
        The q's, 0 to 100; one sort serves all.

    Examples
    --------
    >>> d(torch.linspace(60.0, 70.0, 101), 2, 50, 98)
    [69.80000305175781, 65.0, 60.20000076293945]

    Two points, of which the colder stands for three voxels, and what the four voxels have:

    >>> d(VolumeDoses(torch.tensor([70.0, 60.0]), torch.tensor([1.0, 3.0])), 0, 50, 100)
    [70.0, 65.0, 60.0]
    """
    ranked, order = values(dose).flatten().sort(descending=True)
    place = torch.tensor(percent, dtype=torch.float64) / 100.0 * (ranked.numel() - 1)
    if isinstance(dose, VolumeDoses) and ranked.numel() > 1:
        volume = dose.volume.flatten()[order].to("cpu", torch.float64)
        middle = volume.cumsum(0) - 0.5 * volume
        at = (middle - middle[0]) / (middle[-1] - middle[0]) * 100.0
        q = torch.tensor(percent, dtype=torch.float64)
        right = torch.searchsorted(at, q).clamp(1, len(at) - 1)
        place = right - 1 + ((q - at[right - 1]) / (at[right] - at[right - 1])).clamp(0.0, 1.0)
    below = place.floor().long()
    above = (below + 1).clamp(max=ranked.numel() - 1)
    low, high = (ranked[i.to(ranked.device)].to("cpu", torch.float64) for i in (below, above))
    return (low + (place - below) * (high - low)).tolist()


def v(dose: RoiDose, threshold: float) -> float:
    """`V_d`, %: the part of the volume with at least `threshold` Gy."""
    return 100.0 * volume_from(dose, threshold) / voxel_count(dose)


def homogeneity(dose: RoiDose) -> float:
    """`HI = (D2 - D98) / D50` (ICRU 83, section 3.7.1); 0 is perfectly even, and a ROI without dose has none: NaN."""
    d2, d50, d98 = d(dose, 2.0, 50.0, 98.0)
    return (d2 - d98) / d50 if d50 > 0 else float("nan")


def conformity(dose: RoiDose, body: torch.Tensor, prescription: float) -> float:
    """Paddick's conformity index `(T and R)^2 / (T R)` (J Neurosurg 93 suppl 3:219, 2000); 1 is perfect, 0 a miss.

    T is the target, R the region of the whole body inside the reference isodose, 95 % of the prescription.

    Parameters
    ----------
    dose
        The target's doses, Gy.
    body
        `(n_body,)`, the doses of every voxel that has dose, the target's among them, Gy.
    prescription
        Gy.
    """
    level = REFERENCE_ISODOSE * prescription
    covered, irradiated = volume_from(dose, level), int((body >= level).sum())
    return covered**2 / (voxel_count(dose) * irradiated) if irradiated else 0.0


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

    def __call__(self, dose: RoiDose, *, prescription: float | None = None, body: torch.Tensor | None = None) -> float:
        """The metric's value on the doses of a ROI, Gy.

        Parameters
        ----------
        dose
            At least one voxel.
        prescription, body
            What `ci` needs besides: the prescription in Gy and the doses `(n_body,)` of the whole body.
        """
        if values(dose).numel() == 0:
            raise InputError(f"{self}: the ROI has no voxel")
        match self.kind:
            case "d":
                return d(dose, self.argument or 0.0)[0]
            case "v":
                return v(dose, self.argument or 0.0)
            case "mean":
                return mean_dose(dose)
            case "max":
                return float(values(dose).max())
            case "min":
                return float(values(dose).min())
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


def dvh(dose: RoiDose, axis: torch.Tensor) -> torch.Tensor:
    """Cumulative DVH: the percentage of the volume that receives at least each dose of the axis.

    Parameters
    ----------
    dose
        Gy.
    axis
        `(n_points,)`, Gy.

    Returns
    -------
    `(n_points,)`, %, float64, falling from 100.
    """
    ranked, order = values(dose).flatten().to("cpu", torch.float64).sort()
    below = torch.searchsorted(ranked, axis.contiguous())
    if not isinstance(dose, VolumeDoses):
        return 100.0 * (ranked.numel() - below).double() / ranked.numel()
    # volumes are added from the hottest on, so that the curve falls to exactly 0
    volume = dose.volume.flatten().to("cpu", torch.float64)[order].flip(0)
    above = torch.cat((volume.new_zeros(1), volume.cumsum(0))).flip(0)
    return 100.0 * above[below] / above[0]


@dataclass(frozen=True)
class Band:
    """What a DVH does over the scenarios, each `(n_points,)`, %: the nominal curve, and the lowest and highest volume at each dose."""

    nominal: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


def dvh_band(doses: Sequence[RoiDose], axis: torch.Tensor) -> Band:
    """The DVH's envelope over scenarios; the first of `doses` is the nominal one, Gy."""
    curves = torch.stack([dvh(dose, axis) for dose in doses])
    return Band(curves[0], curves.min(dim=0).values, curves.max(dim=0).values)


def common_axis(doses: Mapping[str, Mapping[str, RoiDose]], n_points: int = 400) -> torch.Tensor:
    """One dose axis that holds every ROI in every scenario: `doses[scenario][roi]`, Gy."""
    top = max((float(own.max()) for rois in doses.values() for own in map(values, rois.values()) if own.numel()), default=0.0)
    return dose_axis(top, n_points)


def dvh_curves(doses: Mapping[str, Mapping[str, RoiDose]], n_points: int = 400) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """`{scenario: {roi: (dose in Gy, volume in %)}}` on one axis, from `doses[scenario][roi]`, Gy."""
    axis = common_axis(doses, n_points)
    return {scenario: {roi: (axis, dvh(dose, axis)) for roi, dose in rois.items()} for scenario, rois in doses.items()}
