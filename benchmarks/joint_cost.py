"""What do position gradients cost, on top of the objective and its weight gradient, in the same engine?

    python benchmarks/joint_cost.py [--case openkbp_109] [--spacing 8] [--repeats 9] [--out runs/joint_cost.json]

Times one evaluation of the robust objective (doses of all scenarios, objective, adjoint) with the gradient for weights alone and with the
gradient for weights and positions, alternately, matrix-free in both. Prints the ratio of the medians and its spread; the aim is 1.3.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from measure import built_case, repeat

from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.studies.flags import flags

AIM = 1.3


@dataclass(frozen=True)
class Config:
    """Flags."""

    case: str = "openkbp_109"
    spacing: float = 8.0
    repeats: int = 9
    out: str = "runs/joint_cost.json"


def main(config: Config) -> dict:
    """Time, print, write."""
    facts = about()
    built = built_case(config.case, [f"spots.spacing_mm={config.spacing}", "dose.engine=matrix_free"])
    position, weight = built.spots.position.detach(), built.spots.weight.detach()

    def evaluate(move: bool) -> None:
        _, residual = built.objective.value_and_grad(built.doses.dose(position, weight))
        built.doses.gradient(residual, position, weight, move)

    for move in (False, True):
        evaluate(move)
    pairs = [(repeat(lambda: evaluate(False), 1).median, repeat(lambda: evaluate(True), 1).median) for _ in range(config.repeats)]
    ratios = sorted(b / a for a, b in pairs)
    fixed, moving = (sorted(column)[len(pairs) // 2] for column in zip(*pairs, strict=True))
    found = {
        "about": facts, "config": asdict(config), "spots": built.spots.n_spots, "scenarios": len(built.scenarios),
        "weights_s": fixed, "weights_and_positions_s": moving, "ratio": ratios[len(ratios) // 2], "low": ratios[0], "high": ratios[-1],
    }  # fmt: skip
    print(facts)
    print(
        f"{built.spots.n_spots} spots, {len(built.scenarios)} scenarios: weights {fixed:.3f} s, weights and positions {moving:.3f} s, "
        f"ratio {found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f}), aim {AIM}: {'met' if found['ratio'] <= AIM else 'missed'}"
    )
    write_json(Path(config.out), found)
    return found


if __name__ == "__main__":
    main(flags(Config, __doc__))
