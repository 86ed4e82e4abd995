"""Scenarios shared out among processes: objectives and their modes give every process the bits that one process has."""

from __future__ import annotations

import pytest
import torch
from crew import crew

from torchimpt.checks import InputError
from torchimpt.objectives import (
    BoundObjective,
    BoundTerm,
    Composite,
    CVaR,
    Expected,
    MaxDose,
    MaxDVH,
    MeanDose,
    MinDose,
    Nominal,
    Objectivewise,
    Percentile,
    RobustMode,
    RobustObjective,
    Sum,
    UniformDose,
    Voxelwise,
    VoxelwiseInvariant,
)
from torchimpt.processes import ALONE, Team, joined

K, N = 5, 33_000  # voxels enough for torch to part sums among threads
MODES = [
    Sum(), Sum([3.0, 1, 0, 2, 1]), Nominal(), Expected(), Composite(8.0), Composite(float("inf")), Objectivewise(8.0), CVaR(level=0.7),
    Percentile(percent=60.0), Voxelwise(2.0), Voxelwise(0.0), VoxelwiseInvariant(0.7),
]  # fmt: skip


def problem(team: Team, mode: RobustMode) -> tuple[RobustObjective, torch.Tensor, torch.Tensor]:
    """An objective among processes, doses and rates of all scenarios; the doses of two tie."""
    generator = torch.Generator().manual_seed(5)
    doses, rates = 60.0 + 8.0 * torch.rand((2, K, N), generator=generator)
    doses[4, : N // 2] = doses[1, : N // 2] = 70.0
    target, organ = torch.arange(0, N - 100), torch.arange(N // 2, N)
    terms = [
        BoundTerm(MinDose("PTV", 62.0, 3.0), target, 1e-3), BoundTerm(UniformDose("PTV", 64.0), target, 1e-3),
        BoundTerm(MaxDose("OAR", 61.0), organ, 1e-3), BoundTerm(MaxDVH("OAR", 63.0, volume_percent=30), organ, 1e-3),
        BoundTerm(MeanDose("OAR", 20.0, mode=Nominal()), organ, 1e-3),
    ]  # fmt: skip
    return RobustObjective(BoundObjective(terms, N, team), mode), doses, rates - 64.0


def answers(team: Team) -> list[dict]:
    """Of every mode: value, gradient of this process's scenarios, two points of a ray, and the terms' shares."""
    found = []
    for mode in MODES:
        objective, doses, rates = problem(team, mode)
        own, ways = team.own(doses), team.own(rates)
        value, grad = objective.value_and_grad(own)
        ray = objective.along(own, ways)
        found.append({
            "value": float(value), "grad": grad.numpy(), "ray": [ray(length) for length in (0.25, 1.0)], "terms": objective.terms(own),
            "exact": float(objective.exact_value(own)), "highest": objective.highest(own),
        })  # fmt: skip
    return found


class Alone(Composite):
    """A mode whose author has not thought of several processes."""

    name = "alone"
    shared = False


def wrongs(team: Team) -> list[str]:
    """Errors that every process finds by itself."""
    told = []
    for wrong in (lambda: team.share(1), lambda: problem(team.share(K), Alone()), lambda: team.agree({"case": team.rank})):
        try:
            wrong()
        except InputError as error:
            told.append(str(error))
    return told


def of_a_session() -> tuple[int, list[dict], list[str]]:
    """In a process of several."""
    with joined("cpu") as team:
        shared = team.share(K)
        return len(shared.own(range(K))), answers(shared), wrongs(team)


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_modes_have_the_bits_of_one_process_and_errors_are_told(size: int) -> None:
    alone, found = answers(ALONE), crew(size, of_a_session)
    counts = [count for count, _, _ in found]
    assert sum(counts) == K and min(counts) >= 1 and counts[0] == min(counts)
    first = 0
    for count, told, wrong in found:
        for mode, one, other in zip(MODES, alone, told, strict=True):
            for name in ("value", "ray", "terms", "exact", "highest"):
                assert other[name] == one[name], (mode, name)
            assert (other["grad"] == one["grad"][first : first + count]).all(), mode
        first += count
        assert len(wrong) == 3
        assert wrong[0].startswith(f"{size} processes were started for 1 scenario: each needs one of its own; start 1 at most")
        assert wrong[1] == "mode 'alone' is not made for several processes (`shared` of its class); start one"
        assert wrong[2].startswith("process 1 has another case than process 0: 1 and 0; all have to start from the same")


def of_an_end(who: int) -> str:
    """One process ends by an error of its own, while the others wait for it."""
    try:
        with joined("cpu") as team:
            if team.rank == who:
                raise InputError("my disk is full")
            team.share(K).gather(torch.zeros(len(team.share(K).own(range(K)))))
    except InputError as error:
        return f"{getattr(error, 'speaks', 'of its own')}: {error}"
    return "nothing happened"


@pytest.mark.parametrize("who", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_one_process_tells_why_all_end(who: int) -> None:
    told = crew(3, of_an_end, who)
    assert told.pop(who) == "of its own: my disk is full"  # which the first one prints, and nobody hears from another
    assert told == [f"{who == 2}: process {who} of 3 ended: my disk is full", f"False: process {who} of 3 ended: my disk is full"]


def test_launchers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined() as team:
        assert team is ALONE
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="WORLD_SIZE must be a number, got 'two'"), joined():
        pass
