"""docs/api.md: its reference is the docstrings, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from api_surface import page
from PIL import Image

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
MARK = "--update-golden -->\n"


def parts() -> tuple[str, str]:
    """What is written by hand, and what is made."""
    by_hand, mark, made = PAGE.read_text("utf-8").partition(MARK)
    return by_hand + mark, made.removeprefix("\n")


def test_the_reference_is_what_the_docstrings_say(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        PAGE.write_text(f"{parts()[0]}\n{page()}", "utf-8")
    assert parts()[1] == page(), "run pytest tests/docs/test_api_page.py --update-golden"


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_models.write_vit(Path("model.pt"))
    Path("photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(f"photos/{index}.png")
    known: dict[str, Any] = {"ARCH": f"timm:{tiny_models.NAME}", "ARCH_ARGS": tiny_models.ARGUMENTS}
    blocks = re.findall(r"```python\n(.*?)```", parts()[0], flags=re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), known)
    assert known["done"].held_out.measure == "agreement"
    assert known["verdict"].verdict in {"holds", "regressed", "inconclusive"}
