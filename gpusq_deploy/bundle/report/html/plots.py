"""Plots as SVG inside a page: drawn by leather, in the page's own colours, so that they are dark where it is."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import leather
from leather import theme

_WIDTH, _HEIGHT = 860, 260
_THEME: dict[str, object] = {
    "margin": 0.02,
    "background_color": "none",
    "tick_color": "var(--rule)",
    "zero_color": "var(--rule)",
    "label_color": "var(--muted)",
    "axis_title_color": "var(--muted)",
    "tick_font_family": "inherit",
    "axis_title_font_family": "inherit",
}


def line_plot(values: Sequence[float], *, across: str, up: str) -> str:
    """Values in their order, counted from 0, as a line; nothing of fewer than two."""
    if len(values) < 2:
        return ""
    chart, points = _chart(values, across, up)
    chart.add_line(points, stroke_color="var(--plot-1)", width=3)
    return _svg(chart)


def dots_plot(series: Sequence[Sequence[float]], *, across: str, up: str) -> str:
    """Values of several series, one behind the other and counted through from 0; neighbours differ in colour."""
    owners = [number for number, values in enumerate(series) for _ in values]
    colours = ("var(--plot-1)", "var(--plot-2)")
    chart, points = _chart([value for values in series for value in values], across, up)
    chart.add_dots(points, fill_color=lambda datum: colours[owners[datum.i] % len(colours)], radius=2)
    return _svg(chart)


def _chart(values: Sequence[float], across: str, up: str) -> tuple[leather.Chart, list[tuple[float, float]]]:
    chart = leather.Chart()
    chart.add_x_axis(name=across)
    chart.add_y_axis(name=up)
    if len(set(values)) == 1:  # of equal values it knows no scale that holds them
        chart.add_y_scale(values[0] - 1, values[0] + 1)
    return chart, list(enumerate(values))


def _svg(chart: leather.Chart) -> str:
    with _page_colours():
        drawn = chart.to_svg(width=_WIDTH, height=_HEIGHT)
    # Of a size of its own it would be wider than a small screen.
    return drawn.replace(f'<svg width="{_WIDTH}" height="{_HEIGHT}"', f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}"', 1)


@contextmanager
def _page_colours() -> Generator[None, None, None]:
    """Leather has one theme for the whole process: it is left as it was."""
    before = {name: getattr(theme, name) for name in _THEME}
    try:
        for name, value in _THEME.items():
            setattr(theme, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(theme, name, value)
