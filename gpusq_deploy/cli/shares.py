"""Shares and other numbers on the command line. With a percent sign a number is a percentage, whatever the option.

Without one it is what the option has always taken: a percentage for budgets (`Percent`), else a share (`Share`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from gpusq_deploy.cli.common import say

# Generic in newer versions of click alone: older ones can't be subscripted.
if TYPE_CHECKING:
    _Type = click.ParamType[float]
else:
    _Type = click.ParamType


class Positive(_Type):
    """A finite number above 0, and at most `most`: click's own range takes `nan`."""

    name = "float"

    def __init__(self, most: float = math.inf) -> None:
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = _number(str(value).strip())
        if not (math.isfinite(number) and 0 < number <= self._most):
            limit = "" if math.isinf(self._most) else f", and at most {self._most:g}"
            self.fail(f"{str(value)!r} is not a number above 0{limit}", param, ctx)
        return number


class Percent(_Type):
    """Not negative, a share from `3%` or `3`; a number below 1 without the sign is warned of: it may be a share."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share: 0.03 for `3%`."""
        text = str(value).strip()
        percent = _number(text.removesuffix("%"))
        if not (math.isfinite(percent) and percent >= 0):
            self.fail(f"{text!r} is not a percentage such as 3%, 3 or 0.5%", param, ctx)
        if 0 < percent < 1 and not text.endswith("%"):
            option = "" if param is None else f"{param.opts[0]} "
            say(f"warning: {option}{text} means {text} %: write {100 * percent:g}% if that was meant, or {text}%")
        return percent / 100


class Share(_Type):
    """From 0 to 1: `0.98` or `98%`."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share: 0.98 for either."""
        text = str(value).strip()
        share = _number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        if not 0 <= share <= 1:
            self.fail(f"{text!r} is not a share from 0 to 1, such as 0.98 or 98%", param, ctx)
        return share


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


max_regression_option = click.option(
    "--max-regression",
    metavar="PERCENT",
    default="3%",
    show_default=True,
    type=Percent(),
    help="Allow HEAD to be this much slower: 3%, or 3, which is the same.",
)
