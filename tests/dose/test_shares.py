"""Which scenario lies on which device, and what moves between them."""

from types import SimpleNamespace

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.dose.shares import Place, Placement, contributions, gathered, shares
from torchimpt.processes import ALONE

CPU, META = torch.device("cpu"), torch.device("meta")
FIRST = SimpleNamespace(n_bytes=10)


def counts(placement, n=9):
    """How many of `n` scenarios each device gets."""
    found = placement.devices(FIRST, n)
    return [found.count(place.device) for place in placement.places]


@pytest.mark.parametrize(("budget", "expected"), [(0, [0, 9]), (9.9, [0, 9]), (45, [4, 5]), (90, [9, 0]), (1e9, [9, 0]), (None, [9, 0])])
def test_a_device_is_filled_up_to_its_budget(budget, expected):
    assert counts(Placement([Place(META, budget), Place(CPU)])) == expected


def test_scenarios_are_given_in_their_order_and_the_last_place_takes_the_rest():
    other = torch.device("cuda", 3)
    found = Placement([Place(META, 25), Place(other, 31), Place(CPU, 0)]).devices(FIRST, 9)
    assert found == [META] * 2 + [other] * 3 + [CPU] * 4
    assert [tuple(share) for share in shares(found)] == [(META, 0, 2), (other, 2, 5), (CPU, 5, 9)]


def test_what_is_stored_beside_the_tables_counts_and_what_is_needed_once():
    assert counts(Placement([Place(META, 100), Place(CPU)], lambda first: (2.5 * first.n_bytes, 0.0))) == [4, 5]
    assert counts(Placement([Place(META, 100), Place(CPU)], lambda first: (2.5 * first.n_bytes, 30.0))) == [2, 7]
    assert counts(Placement([Place(META, 20), Place(CPU)], lambda first: (10.0, 30.0))) == [0, 9]


def test_what_comes_later_lies_where_the_first_was_put():
    placement = Placement([Place(META, 45), Place(CPU)])
    first = placement.devices(FIRST, 9)
    assert placement.devices(SimpleNamespace(n_bytes=1), 9) == first


def test_a_budget_below_zero():
    with pytest.raises(InputError, match="the budget of meta must be zero or more bytes, got -1"):
        Placement([Place(META, -1), Place(CPU)])


def test_all_vectors_are_sent_before_any_work_and_gpus_begin():
    """A copy from a GPU would wait for the work that was queued there."""
    order = []

    class Vector:
        """Writes down when it is sent."""

        device = CPU

        def to(self, device):
            order.append(("to", device.type))
            return torch.ones(3, device=device)

    def work(share, x):
        order.append(("work", share.device.type))
        return torch.zeros(share.end - share.begin, 3)

    found = gathered(shares([CPU, CPU, META, CPU]), work, Vector())
    assert found.shape == (4, 3)
    assert order == [("to", "cpu"), ("to", "meta"), ("to", "cpu"), ("work", "meta"), ("work", "cpu"), ("work", "cpu")]


def test_sums_are_in_the_scenarios_order():
    """To the last bit what one scenario after the other would give."""
    rows = torch.tensor([[1e8], [1.0], [-1e8], [1.0]], dtype=torch.float32)
    found = ALONE.sum(contributions(shares([CPU] * 4), lambda share, r: list(r), rows))
    assert torch.equal(found, ((rows[0] + rows[1]) + rows[2]) + rows[3])
