"""How long does each solver take to a plan, on the same matrices: ours, the published one, SciPy's and IPOPT?

    python benchmarks/race.py [--case hn] [--seconds 20] [--clock wall] [--out runs/race.json]

The weight problem of a case from the same start, each solver for so many seconds: `projected_cg` (the default), `dyhs_cg` (Xu et al. 2020),
SciPy's L-BFGS-B and IPOPT on our products, and both as their users run them, on SciPy's CSR matrices (float32, A and A^T both stored, which
is the faster of the ways). The rivals get bounds, the variables scaled by the inverse root of the Hessian's diagonal as the default has
them, 20 pairs, an analytic gradient and the default's start; IPOPT its limited-memory Hessian and adaptive barrier. Objective and gradient
by dose are our own in all. Prints the objective over time, the seconds to within 1 % of the best objective that any of them found, and
their ratio to the default's; the aims are 4 against the best rival on SciPy's products and 1.5 against the best on ours.
`--clock processor` counts processor seconds, for a machine that others share. IPOPT runs where `cyipopt` is installed (`pip install
cyipopt-wheels`); where not, the table says so. Two minutes or so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from measure import built_case, read_bandwidth
from scipy import optimize

from torchimpt.dose.influence import InfluenceMatrix, influence_matrices
from torchimpt.optim import Composite, minimize
from torchimpt.planning.build import PlanningProblem
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.schemes.weights import best_uniform_weight, jacobi_scale
from torchimpt.studies.flags import flags

try:
    import cyipopt
except ImportError:
    cyipopt = None

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
AIMS = {"SciPy products": 4.0, "our products": 1.5}
WITHIN = 1.01
PAIRS = 20


@dataclass(frozen=True)
class Config:
    """Flags; `grid` and `spacing` of zero are the case's own."""

    case: str = "hn"
    grid: float = 0.0
    spacing: float = 0.0
    seconds: float = 20.0
    clock: str = "wall"
    out: str = "runs/race.json"


class TimeIsUp(Exception):
    """Ends a rival's run."""


class Maps:
    """All scenarios' matrices as one linear map: our products."""

    def __init__(self, matrices: list[InfluenceMatrix]) -> None:
        self.matrices = matrices

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`A x`."""
        return torch.stack([m.forward(x) for m in self.matrices])

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`A^T r`."""
        return sum(m.adjoint(r) for m, r in zip(self.matrices, residual, strict=True))

    def columns(self, index: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """`A[:, index] values`."""
        return torch.stack([m.columns(index, values) for m in self.matrices])


class ScipyMaps:
    """The same products by SciPy."""

    def __init__(self, matrices: list[InfluenceMatrix]) -> None:
        self.transposes = [_scipy(m) for m in matrices]
        self.matrices = [t.T.tocsr() for t in self.transposes]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`A x`."""
        return torch.from_numpy(np.stack([m @ x.numpy() for m in self.matrices]))

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`A^T r`."""
        return torch.from_numpy(sum(m @ r for m, r in zip(self.transposes, residual.numpy(), strict=True)))


def _scipy(matrix: InfluenceMatrix) -> scipy.sparse.csr_array:
    """`A^T`, without the zeros that fill up short rows."""
    entries = matrix.transpose.entries
    parts = (entries.values().numpy(), entries.col_indices().numpy(), entries.crow_indices().numpy())
    found = scipy.sparse.csr_array(parts, shape=matrix.shape[::-1])
    found.sum_duplicates()
    found.eliminate_zeros()
    return found


class Rival:
    """Objective and gradient of `x / scale` for a solver from elsewhere, with the least value so far at every time."""

    def __init__(self, maps: Maps | ScipyMaps, built: PlanningProblem, scale: torch.Tensor, config: Config) -> None:
        self.maps, self.objective, self.scale, self.config = maps, built.objective, scale, config
        self.clock = CLOCKS[config.clock]
        self.began, self.curve, self.last = self.clock(), [], np.empty(0)

    def both(self, scaled: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient; those of the last point are remembered."""
        if not np.array_equal(scaled, self.last):
            x = torch.from_numpy(np.maximum(scaled, 0.0)).to(self.scale) * self.scale
            value, residual = self.objective.value_and_grad(self.maps.forward(x))
            self.found = float(value), (self.maps.adjoint(residual) * self.scale).double().numpy()
            self.last = scaled.copy()
            now = self.clock() - self.began
            self.curve.append((now, float(value)))
            if now > self.config.seconds:
                raise TimeIsUp
        return self.found

    def objective_value(self, scaled: np.ndarray) -> float:
        """For IPOPT."""
        return self.both(scaled)[0]

    def gradient(self, scaled: np.ndarray) -> np.ndarray:
        """For IPOPT."""
        return self.both(scaled)[1]


def by_scipy(rival: Rival, start: np.ndarray) -> None:
    """L-BFGS-B."""
    options = {"maxcor": PAIRS, "maxiter": 10**6, "maxfun": 10**6, "ftol": 0.0, "gtol": 0.0}
    optimize.minimize(rival.both, start, jac=True, method="L-BFGS-B", bounds=optimize.Bounds(0.0, np.inf), options=options)


def by_ipopt(rival: Rival, start: np.ndarray) -> None:
    """IPOPT with a limited-memory Hessian."""

    class Unconstrained:
        objective, gradient = staticmethod(rival.objective_value), staticmethod(rival.gradient)

        @staticmethod
        def intermediate(*_: object) -> bool:
            return rival.curve[-1][0] < rival.config.seconds

    problem = cyipopt.Problem(n=len(start), m=0, problem_obj=Unconstrained(), lb=np.zeros(len(start)), ub=np.full(len(start), 1e19))
    options = {"hessian_approximation": "limited-memory", "limited_memory_max_history": PAIRS, "mu_strategy": "adaptive", "tol": 1e-12,
               "max_iter": 10**6, "print_level": 0, "sb": "yes", "bound_relax_factor": 0.0}  # fmt: skip
    for name, value in options.items():
        problem.add_option(name, value)
    problem.solve(start)


def ours(maps: Maps, built: PlanningProblem, start: torch.Tensor, scale: torch.Tensor, method: str, config: Config) -> list:
    """The curve of one of our methods."""
    clock, curve = CLOCKS[config.clock], []
    began = clock()

    def note(iteration) -> bool:
        curve.append((clock() - began, iteration.value))
        return curve[-1][0] > config.seconds

    minimize(Composite(maps, built.objective), start, method=method, scale=scale, tolerance=0.0, max_iterations=10**6, callback=note)
    return curve


def run_all(built: PlanningProblem, config: Config) -> dict[str, list]:
    """Every solver's curve: `(seconds, value)` of its evaluations."""
    start = best_uniform_weight(built.linear, built.objective, built.spots.weight.detach())
    position = built.spots.position.detach()
    scale = jacobi_scale(built.doses[built.doses.nominal], position, built.objective)
    matrices = influence_matrices(built.doses, position)
    maps, theirs = Maps(matrices), ScipyMaps(matrices)
    curves = {}
    for method in ("projected_cg", "dyhs_cg"):
        minimize(Composite(maps, built.objective), start, method=method, scale=scale, max_iterations=3, tolerance=0.0)
        curves[method] = ours(maps, built, start, scale, method, config)
    solvers = {"L-BFGS-B": by_scipy, **({} if cyipopt is None else {"IPOPT": by_ipopt})}
    for kind, products in (("our products", maps), ("SciPy products", theirs)):
        for name, solve in solvers.items():
            rival = Rival(products, built, scale, config)
            with suppress(TimeIsUp):
                solve(rival, (start / scale).double().numpy())
            curves[f"{name}, {kind}"] = rival.curve
    return curves


def reach(curve: list, value: float) -> float:
    """Seconds to a value; infinite where it was not reached."""
    return next((t for t, v in curve if v <= value), math.inf)


def main(config: Config) -> dict:
    """Race, print, write."""
    machine = about()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    own = {"dose.grid_mm": config.grid, "spots.spacing_mm": config.spacing}
    built = built_case(config.case, [f"{key}={value}" for key, value in own.items() if value > 0])
    print(
        f"{config.case}: {built.spots.n_spots:,} spots, {len(built.points):,} points, {len(built.scenarios)} scenarios; read bandwidth "
        f"{read_bandwidth(5)[0]:.1f} GB/s; {config.clock} clock" + ("; IPOPT not available" if cyipopt is None else "") + "\n"
    )
    curves = run_all(built, config)
    best = min(v for curve in curves.values() for _, v in curve)
    times = [config.seconds * share for share in (0.05, 0.1, 0.25, 0.5, 1.0)]
    print(f"{'':28s}" + "".join(f"{f'{t:.3g} s':>12s}" for t in times) + f"{'s to 1 %':>12s}{'evaluations':>13s}")
    for name, curve in curves.items():
        values = [min((v for t, v in curve if t <= end), default=math.nan) for end in times]
        print(f"{name:28s}" + "".join(f"{v:12.6g}" for v in values) + f"{reach(curve, WITHIN * best):12.2f}{len(curve):13d}")
    mine, ratios = reach(curves["projected_cg"], WITHIN * best), {}
    for kind, aim in AIMS.items():
        rivals = {name: reach(curve, WITHIN * best) for name, curve in curves.items() if name.endswith(kind)}
        if kind == "our products":
            rivals["dyhs_cg"] = reach(curves["dyhs_cg"], WITHIN * best)
        name = min(rivals, key=rivals.__getitem__)
        told, least = ("", rivals[name]) if math.isfinite(rivals[name]) else ("more than ", config.seconds)
        ratios[kind] = ratio = least / mine
        verdict = f"aim {aim}: {'met' if ratio >= aim else 'missed'}"
        print(f"best rival on {kind}: {name}, {told}{ratio:.2f} times the default's seconds, {verdict}")
    found = {"machine": machine, "config": asdict(config), "best": best, "ratios": ratios, "curves": curves}
    write_json(Path(config.out), found)
    return found


if __name__ == "__main__":
    main(flags(Config, __doc__))
