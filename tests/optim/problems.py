"""Problems whose minima are known, and a small one with the form of a plan."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimpt.objectives import BoundObjective, BoundTerm, MaxDose, MaxDVH, MeanDose, MinDose, MinDVH, RobustObjective
from torchimpt.optim import Composite


class Quadratic:
    """`0.5 (x - c)' H (x - c)`."""

    def __init__(self, hessian: Tensor, center: Tensor) -> None:
        self.hessian, self.center = hessian, center
        self.points: list[Tensor] = []

    def value_and_grad(self, x: Tensor) -> tuple[float, Tensor]:
        self.points.append(x.clone())
        gradient = self.hessian @ (x - self.center)
        return 0.5 * float(gradient @ (x - self.center)), gradient


class Rosenbrock:
    """`sum 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2`; minimum at ones."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []

    def value_and_grad(self, x: Tensor) -> tuple[float, Tensor]:
        self.points.append(x.clone())
        valley, rest = x[1:] - x[:-1] ** 2, 1 - x[:-1]
        gradient = torch.zeros_like(x)
        gradient[:-1] += -400 * valley * x[:-1] - 2 * rest
        gradient[1:] += 200 * valley
        return float(100 * valley @ valley + rest @ rest), gradient


def random_quadratic(n: int, condition: float, generator: torch.Generator) -> Quadratic:
    """A quadratic whose unconstrained minimum has components of both signs."""
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    values = torch.logspace(0, torch.log10(torch.tensor(condition)).item(), n, dtype=torch.float64)
    return Quadratic(q * values @ q.T, torch.randn(n, dtype=torch.float64, generator=generator))


class Plan:
    """A plan in two dimensions: spots are Gaussians on a 60 x 40 grid, a disk is the target, a disk beside it an organ.

    Attributes
    ----------
    matrices
        `(n_scenarios, n_voxels, n_spots)`, one for each shift of the spots.
    problem
        F over the scenarios; the plan itself is the linear map.
    start, scale
        Uniform weights that give the target its dose on average, and the inverse square root of the Hessian's diagonal.
    """

    def __init__(self, dtype: torch.dtype = torch.float64, dvh: bool = False, shifts: tuple[float, ...] = (0.0,), spacing: int = 2) -> None:
        v, u = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
        voxels = torch.stack([u.flatten(), v.flatten()], -1).double()
        target = (voxels - torch.tensor([25.0, 20.0])).norm(dim=-1) < 12
        organ = (voxels - torch.tensor([42.0, 20.0])).norm(dim=-1) < 8
        spots = voxels[((voxels - torch.tensor([25.0, 20.0])).norm(dim=-1) < 15) & (voxels % spacing == 0).all(-1)]
        sigma = 2.0 + 2.0 * (torch.arange(len(spots)) % 3)

        def matrix(shift: float) -> Tensor:
            offset = voxels[:, None, :] - spots - torch.tensor([shift, 0.0])
            return (torch.exp(-offset.square().sum(-1) / (2 * sigma**2)) / sigma**2).to(dtype)

        voxels, target = voxels[target | organ], target[target | organ]
        self.matrices = torch.stack([matrix(shift) for shift in shifts])
        self._transpose = self.matrices.flatten(0, 1).T.contiguous()
        inside, beside = target.nonzero().flatten(), (~target).nonzero().flatten()
        terms = [
            BoundTerm(MinDose("T", 60.0, 100.0), inside, 1 / len(inside)),
            BoundTerm(MaxDose("T", 64.0, 100.0), inside, 1 / len(inside)),
            BoundTerm(MaxDose("O", 20.0, 10.0), beside, 1 / len(beside)),
        ]
        if dvh:
            terms += [
                BoundTerm(MinDVH("T", 61.0, 50.0, volume_percent=90), inside, 1 / len(inside)),
                BoundTerm(MaxDVH("O", 8.0, 10.0, volume_percent=30), beside, 1 / len(beside)),
                BoundTerm(MeanDose("O", 6.0, 10.0), beside, 1 / len(beside)),
            ]
        self.objective = RobustObjective(BoundObjective(terms, len(voxels)))
        ones = torch.ones(len(spots), dtype=dtype)
        self.start = ones * 60 / (self.matrices[0] @ ones)[inside].mean()
        gain = torch.zeros(len(voxels), dtype=dtype)
        for bound in terms[:3]:
            gain[bound.index] += 2 * bound.term.weight * bound.factor
        self.scale = (self.matrices.square() * gain[:, None]).sum((0, 1)).rsqrt()
        self.points: list[Tensor] = []
        self.problem = Composite(self, self.objective)

    def forward(self, x: Tensor) -> Tensor:
        return self.matrices @ x

    def columns(self, index: Tensor, values: Tensor) -> Tensor:
        return self.matrices[:, :, index] @ values

    def adjoint(self, residual: Tensor) -> Tensor:
        return self._transpose @ residual.flatten()

    def value(self, x: Tensor) -> float:
        """F, from scratch."""
        return float(self.objective.value(self.matrices @ x))
