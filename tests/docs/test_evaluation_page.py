"""The goals that docs/evaluation.md names: nobody ran them here, so their commands and their factory are tried."""

from __future__ import annotations

import shlex
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gpusq_deploy.cli.build import command
from gpusq_deploy.frontend import arch_from_text, module_from_arch

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text("utf-8")
GOALS = PAGE.split("## Goals from the literature")[1]
COMMANDS = [shlex.split(line) for line in GOALS.splitlines() if line.startswith("    gpusq-build ")]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[1])
def test_a_goal_is_a_command_with_options_that_there_are(words: list[str]) -> None:
    name, *rest = words
    asked = command.make_context(name, rest).params
    assert (asked["max_drop"], asked["int8"]) == (0.3, True)
    assert asked["eval_data"] is not None


def test_every_model_of_the_table_has_its_command() -> None:
    assert [words[1] for words in COMMANDS] == ["deit_b.pt", "vit_b.pt", "swin_b.pt", "dinov2_b.pt", "dinov2_l.pt"]


@pytest.mark.slow
def test_the_factory_of_the_page_answers_logits_of_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a smaller DINOv2, whose head is as wide as its backbone."""
    first = GOALS.index("    import timm, torch")
    source = textwrap.dedent(GOALS[first : GOALS.index("\n\nIts state dict")])
    module = ModuleType("dinov2_ade20k")
    monkeypatch.setitem(sys.modules, "dinov2_ade20k", module)
    exec(source, module.__dict__)
    spec = arch_from_text("dinov2_ade20k:make", ["backbone=vit_small_patch14_dinov2"])
    with torch.no_grad():
        answer = module_from_arch(spec).eval()(torch.zeros(1, 3, 518, 518))
    assert answer.shape == (1, 150, 37, 37)
