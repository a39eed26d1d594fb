"""Plots: every value is drawn, in the page's colours, and leather's own theme stays as it was."""

from __future__ import annotations

from xml.etree import ElementTree

from leather import theme

from gpusq_deploy.bundle.report.html.plots import dots_plot, line_plot

SVG = "{http://www.w3.org/2000/svg}"


def test_every_value_is_a_dot_and_neighbouring_series_differ_in_colour() -> None:
    drawn = ElementTree.fromstring(dots_plot([[1.0, 2.0], [3.0], [2.5]], across="inference", up="ms"))
    dots = list(drawn.iter(f"{SVG}circle"))
    assert [dot.get("fill") for dot in dots] == ["var(--plot-1)", "var(--plot-1)", "var(--plot-2)", "var(--plot-1)"]
    heights = [float(dot.get("cy", "nan")) for dot in dots]
    assert sorted(heights, reverse=True) == [heights[0], heights[1], heights[3], heights[2]]
    assert drawn.get("viewBox") == "0 0 860 260"
    assert drawn.get("width") is None


def test_equal_values_lie_inside_the_plot() -> None:
    drawn = ElementTree.fromstring(dots_plot([[5.0, 5.0]], across="inference", up="ms"))
    assert all(0 < float(dot.get("cy", "nan")) < 260 for dot in drawn.iter(f"{SVG}circle"))


def test_a_line_needs_two_values() -> None:
    assert line_plot([1.0], across="block", up="dB") == ""
    assert line_plot([1.0, 2.0], across="block", up="dB").startswith("<svg")


def test_the_colours_are_the_page_s_and_the_theme_is_given_back() -> None:
    before = dict(vars(theme))
    drawn = line_plot([1.0, 2.0], across="block", up="dB")
    assert dict(vars(theme)) == before
    colours = {
        value for each in ElementTree.fromstring(drawn).iter() for value in (each.get("fill"), each.get("stroke"))
    }
    assert all(colour in (None, "none") or colour.startswith("var(--") for colour in colours)
