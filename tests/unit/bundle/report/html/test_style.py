"""Text can be read in both themes: WCAG's contrast of 4.5 and more, of every pair that the style sheet makes."""

from __future__ import annotations

import re
from importlib import resources

import pytest

CSS = resources.files("gpusq_deploy.bundle.report.html").joinpath("templates/style.css").read_text("utf-8")
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for block in re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)[:2]
)
BACKGROUND = re.compile(r"background: (?:repeating-linear-gradient\(135deg, )?var\(--([\w-]+)\)")
COLOUR = re.compile(r"(?<![-\w])color: var\(--([\w-]+)\)")
PAIRS = [
    *((text, ground) for text in ("ink", "muted", "link", "good", "bad", "open") for ground in ("page", "panel")),
    *(("e-ink", f"e{step}") for step in range(5)),
]


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def pairs_of_rules() -> list[tuple[str, str]]:
    """Every rule that sets both."""
    rules = re.findall(r"\{([^{}]*)\}", CSS)
    return [
        (colour[1], ground[1])
        for rule in rules
        if (colour := COLOUR.search(rule)) and (ground := BACKGROUND.search(rule))
    ]


def test_contrast_is_computed_as_wcag_does() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_pair_of_text_and_background_can_be_read(theme: dict[str, str]) -> None:
    pairs = [*PAIRS, *pairs_of_rules()]
    assert len(pairs) > 25
    assert {
        pair: round(contrast(theme[pair[0]], theme[pair[1]]), 2)
        for pair in pairs
        if contrast(theme[pair[0]], theme[pair[1]]) < 4.5
    } == {}


def test_both_themes_have_every_colour() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert set(re.findall(r"var\(--([\w-]+)\)", CSS)) <= LIGHT.keys()
