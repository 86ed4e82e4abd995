"""Jobs in lockstep: each gets its own answers, whoever else is there, and whatever the others do."""

from __future__ import annotations

import threading

import pytest
import torch

from torchimpt.dose import csr
from torchimpt.dose.influence import InfluenceMatrix
from torchimpt.dose.linear import StoredDose
from torchimpt.dose.model import SpotRows
from torchimpt.schemes.lockstep import Lockstep, SharedDose


class Counted(StoredDose):
    """Notes how many vectors each product had."""

    def __init__(self, matrices) -> None:
        super().__init__(matrices)
        self.sizes: list[int] = []

    def forward_many(self, weights: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(weights))
        return super().forward_many(weights)


@pytest.fixture
def linear(generator: torch.Generator) -> Counted:
    values = torch.rand(2, 30 * 20, generator=generator)
    columns = torch.arange(20).repeat(30).int().numpy()
    counts = torch.full((30,), 20).numpy()
    return Counted([InfluenceMatrix(*csr.both_ways([SpotRows(counts, columns, v.numpy())], (20, 30), torch.float32)) for v in values])


def steps(shared: SharedDose, seed: int, count: int) -> torch.Tensor:
    """Gradient steps, as a solver takes them."""
    x = torch.rand(30, generator=torch.Generator().manual_seed(seed))
    for _ in range(count):
        x = x - 1e-3 * shared.adjoint(shared.forward(x) - seed)
    return x


def test_jobs_of_different_length_do_their_products_together(linear: Counted) -> None:
    lockstep = Lockstep()
    shared = lockstep.of(linear)
    alone = [steps(shared, seed, count) for seed, count in ((1, 3), (2, 5), (3, 5))]
    assert set(linear.sizes) == {1}
    linear.sizes.clear()
    found = lockstep.run([lambda s=seed, c=count: steps(shared, s, c) for seed, count in ((1, 3), (2, 5), (3, 5))])
    assert linear.sizes == [3, 3, 3, 2, 2]
    for one, other in zip(found, alone, strict=True):
        assert torch.equal(one, other)
    plain = torch.rand(30, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(shared.forward(plain), linear.forward(plain), rtol=1e-5)  # sums of 30 in another order


def test_one_that_breaks_leaves_the_others_alone(linear: Counted) -> None:
    lockstep = Lockstep()
    shared = lockstep.of(linear)

    def breaks() -> torch.Tensor:
        shared.forward(torch.ones(30))
        raise ValueError("broken")

    found = lockstep.run([breaks, lambda: steps(shared, 2, 4)])
    assert isinstance(found[0], ValueError) and torch.equal(found[1], steps(shared, 2, 4))


def test_interrupt_ends_all_and_each_cleans_up(linear: Counted) -> None:
    lockstep, cleaned, before = Lockstep(), [], threading.active_count()
    shared = lockstep.of(linear)

    def interrupted(weights: torch.Tensor) -> torch.Tensor:
        if len(linear.sizes) == 2:  # it comes to the thread that does the products
            raise KeyboardInterrupt
        return StoredDose.forward_many(linear, weights)

    def job(seed: int) -> None:
        try:
            steps(shared, seed, 10)
        finally:
            cleaned.append(seed)

    linear.forward_many = lambda weights: linear.sizes.append(len(weights)) or interrupted(weights)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        lockstep.run([lambda: job(1), lambda: job(2)])
    assert sorted(cleaned) == [1, 2] and threading.active_count() == before
