"""Names that tell roles."""

from __future__ import annotations

import pytest

from torchimpt.io.roles import role_of


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("External", "external"), ("BODY", "external"), ("body", "external"), ("Skin", "external"), ("Outer Contour", "external"),
        ("PTV70", "target"), ("ctv", "target"), ("GTVp", "target"), ("ITV_50", "target"), ("OuterTarget", "target"), ("Target", "target"),
        ("Brainstem", "oar"), ("SpinalCord", "oar"), ("Mandible", "oar"), ("Body of vertebra", "oar"), ("Skinfold", "oar"), ("aPTV", "oar"),
    ],
)  # fmt: skip
def test_roles_from_names(name: str, role: str) -> None:
    assert role_of(name) == role
