"""One scale for all: monotone, readable, and told apart without colour vision."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from likely.show.colours import BREAKPOINTS, DARK, LEVELS, LIGHT, legend, legend_probability, level_of

# Machado, Oliveira and Fernandes 2009, full dichromacy, on linear RGB
DICHROMACY = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def luminance(colour, vision="none"):
    """Relative luminance of WCAG 2, as that eye sees it."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(DICHROMACY[vision]) @ linear, 0, 1)
    return float(seen @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    low, high = sorted((one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.slow
@given(st.floats(max_value=0, allow_nan=False), st.floats(max_value=0, allow_nan=False))
def test_a_less_likely_token_never_has_a_lower_level(a, b):
    low, high = sorted((a, b))
    assert level_of(low) >= level_of(high)


def test_breakpoints_are_fixed_and_belong_to_the_more_likely_side():
    assert BREAKPOINTS == (-0.1, -0.5, -1.0, -2.0, -4.0, -8.0)
    for k, edge in enumerate(BREAKPOINTS):
        assert level_of(edge) == k and level_of(math.nextafter(edge, -math.inf)) == k + 1
    assert level_of(0.0) == 0 and level_of(1e-7) == 0 and level_of(-math.inf) == LEVELS - 1
    with pytest.raises(ValueError, match="NaN"):
        level_of(math.nan)


@pytest.mark.parametrize("scale", [LIGHT, DARK])
@pytest.mark.parametrize("vision", DICHROMACY)
def test_brightness_alone_orders_the_levels_for_every_eye(scale, vision):
    values = [luminance(cell.background, vision) for cell in scale]
    assert len(scale) == LEVELS
    assert values == sorted(values, reverse=scale is LIGHT)
    assert all(contrast(a, b) > 1.1 for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("scale", [LIGHT, DARK])
def test_text_on_every_cell_is_readable(scale):
    for cell in scale:
        assert contrast(luminance(cell.background), luminance(cell.text)) >= 4.5, cell


def test_levels_stay_apart_in_256_colours():
    from rich.color import Color, ColorSystem

    numbers = [Color.parse(cell.background).downgrade(ColorSystem.EIGHT_BIT).number for cell in DARK]
    assert len(set(numbers)) == LEVELS


def test_legend_names_every_level_with_its_probability():
    assert len(legend()) == len(legend_probability()) == LEVELS
    assert legend()[0] == "≥ -0.1" and legend()[-1] == "< -8"
    for text, edge in zip(legend_probability(), BREAKPOINTS, strict=False):
        assert math.isclose(float(text[2:]), math.exp(edge), rel_tol=0.05)
