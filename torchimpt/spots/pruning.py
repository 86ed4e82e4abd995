"""Fewer spots: the heaviest only, close ones merged, layers that carry little left out."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree

from torchimpt.checks import InputError
from torchimpt.spots.spots import Spots
from torchimpt.sums import mean


def heaviest(weight: torch.Tensor, count: int) -> torch.Tensor:
    """Mask `(n_spots,)` of the `count` largest weights; all spots where there are no more. Of equal weights the first stay."""
    if count < 1:
        raise InputError(f"at least one spot must stay, got {count}")
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[torch.argsort(weight.detach(), descending=True, stable=True)[:count]] = True
    return mask


def sparsity_cost(weight: torch.Tensor, objective: float, strength: float = 2.0) -> torch.Tensor:
    """Price of each spot's weight `(n_spots,)` that draws light spots to zero: one round of reweighted L1.

        c_s = a F / (n (w_s + e)),   e = 0.1 mean w

    so that `c' w` is about `a F` at the start, whatever the weights: a price of having a spot, not of its weight (Candes, Wakin and Boyd,
    J Fourier Anal Appl 14:877, 2008). Strength 2 is measured: OpenKBP 109, nine scenarios, 6582 moving spots thinned to 1430 and brought to
    the minimum MU, objective 1410 of 1212 spots without a price, 1231 of 1237 at 0.4 and 1186 of 1222 at 2.

    Parameters
    ----------
    weight
        `(n_spots,)`.
    objective
        F.
    strength
        `a`.
    """
    floor = torch.clamp_min(0.1 * mean(weight), torch.finfo(weight.dtype).tiny ** 0.5).to(weight.dtype)
    return strength * objective / (len(weight) * (weight + floor))


def used_layers(weight: torch.Tensor, layer: torch.Tensor, share: float) -> torch.Tensor:
    """Mask `(n_spots,)` of the spots in layers that carry at least `share` of the heaviest layer's weight."""
    total = torch.zeros(int(layer.max()) + 1, dtype=torch.float64, device=weight.device).index_add_(0, layer, weight.detach().double())
    return (total >= share * total.max())[layer]


def merge_close(
    position: torch.Tensor, weight: torch.Tensor, layer: torch.Tensor, distance: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Merge spots of one layer that lie closer than `distance` mm, closest pairs first, until none do.

    A pair becomes one spot of their summed weight at their weighted mean position, which keeps zeroth and first moment of the weights.

    Parameters
    ----------
    position, weight, layer
        `(n_spots, 2)`, `(n_spots,)`, `(n_spots,)`. Further columns of `position` are averaged like the first two, which alone count for the
        distance.
    distance
        mm in the isocentre plane.

    Returns
    -------
    tuple
        Mask `(n_spots,)` of the spots that stay (of each pair the heavier, of equal ones the first), and all positions and weights with
        those that stay updated.
    """
    kept = torch.ones(len(weight), dtype=torch.bool)
    place, load = position.detach().cpu().double().clone(), weight.detach().cpu().double().clone()
    for number in layer.unique().tolist():
        own = (layer.cpu() == number).nonzero().flatten()
        while True:
            alive = own[kept[own]]
            pairs, apart = _close(place[alive, :2], distance)
            if not len(pairs):
                break
            pairs = alive[pairs]
            touched: set[int] = set()
            for k in torch.argsort(apart, stable=True).tolist():
                a, b = pairs[k].tolist()
                if a in touched or b in touched:
                    continue
                touched.update((a, b))
                heavy, light = (a, b) if load[a] >= load[b] else (b, a)
                total = load[a] + load[b]
                if total > 0:
                    # rounded at once, so that the distances that are checked are those that are returned
                    place[heavy] = ((load[a] * place[a] + load[b] * place[b]) / total).to(position.dtype).double()
                load[heavy], kept[light] = total, False
    return kept.to(weight.device), place.to(position), load.to(weight)


def spots_closer_than(spots: Spots, distance: float) -> int:
    """Pairs of spots of one layer that lie closer than `distance` mm."""
    position, layer = spots.position.detach().cpu().double(), spots.layer.cpu()
    return sum(len(_close(position[layer == number], distance)[0]) for number in layer.unique().tolist())


def _close(place: torch.Tensor, distance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs `(n_pairs, 2)` of points `(n, 2)` closer than `distance`, the smaller index first, and their squared distances."""
    pairs = torch.from_numpy(cKDTree(place.numpy()).query_pairs(distance, output_type="ndarray"))
    apart = (place[pairs[:, 0]] - place[pairs[:, 1]]).square().sum(1)
    near = apart < distance**2  # the tree's pairs may be as far apart as that
    return pairs[near], apart[near]
