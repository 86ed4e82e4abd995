"""Spots: the plan's parameters, where they are placed, which of them stay, how they are delivered."""

from torchimpt.spots.spots import Spots

__all__ = ["Spots"]
