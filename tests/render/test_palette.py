"""The tiers' colours can be told apart, also by those who see fewer of them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from reqpath.render.palette import PALETTE
from reqpath.tiers import TIERS

Colour = npt.NDArray[np.float64]

#: From linear RGB to what is seen. Source: Machado, Oliveira and Fernandes, "A Physiologically-based Model
#: for Simulation of Color Vision Deficiency" (2009), severity 1.
VISIONS = {
    "usual": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def to_linear(colour: str) -> Colour:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_oklab(linear: Colour) -> Colour:
    """Return what is seen in steps that look alike. Source: Ottosson, "A perceptual color space" (2020)."""
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    seen: Colour = 100 * lab @ np.cbrt(cones @ np.clip(linear, 0, 1))
    return seen


@pytest.mark.parametrize("vision", VISIONS)
def test_any_two_colours_are_distinct(vision: str) -> None:
    seen = {name: to_oklab(VISIONS[vision] @ to_linear(colour)) for name, (_, colour) in PALETTE.items()}
    common = {*TIERS} - {"app"}
    for one, other in combinations(seen, 2):
        # Two is what can just be seen, side by side.
        least = 8 if {one, other} <= common else 4
        assert float(np.linalg.norm(seen[one] - seen[other])) > least, (one, other)


@pytest.mark.parametrize("name", PALETTE)
def test_a_dark_letter_is_readable_on_each(name: str) -> None:
    weights = np.array([0.2126, 0.7152, 0.0722])
    ground, ink = (float(weights @ to_linear(colour)) for colour in (PALETTE[name][1], "#1c1c1c"))
    # Source: WCAG 2.2, 1.4.3.
    assert (ground + 0.05) / (ink + 0.05) >= 4.5
