"""One convention for shares: a percent sign always means percent."""

from __future__ import annotations

import click
import pytest

from gpusq_deploy.cli.shares import Percent, Share


@pytest.mark.parametrize(("text", "share"), [("98%", 0.98), ("0.98", 0.98), ("1", 1.0), ("0", 0.0), (" 0.5 %", 0.005)])
def test_a_share_is_a_fraction_or_a_percentage(text: str, share: float) -> None:
    assert Share().convert(text, None, None) == pytest.approx(share)


@pytest.mark.parametrize("text", ["98", "-1%", "101%", "nan", "inf", "", "%", "half"])
def test_other_shares_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a share"):
        Share().convert(text, None, None)


@pytest.mark.parametrize("text", ["3%", "3", "0.5%", "120 %"])
def test_both_types_agree_wherever_there_is_a_percent_sign(text: str) -> None:
    assert Percent().convert(text, None, None) == pytest.approx(float(text.removesuffix("%")) / 100)
