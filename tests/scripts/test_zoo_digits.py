"""gpusq-eval on the scanned digits against timm's own transform and a loop in torch, prediction for prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from commands import run_main
from PIL import Image

from gpusq_deploy.benchmarks.demo import digits
from gpusq_deploy.cli.eval import main as evaluate

pytestmark = pytest.mark.slow
run_timm: Any = timm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scans, and a model that has seen them twice: it reads some."""
    pytest.importorskip("sklearn")
    root = tmp_path_factory.mktemp("digits")
    digits.write_data(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "EPOCHS", 2)
        digits.train(root / "data/train", root / "model.pt")
    return root


def by_timm(root: Path) -> tuple[torch.Tensor, list[int]]:
    """Logits and digits of the held-out scans: timm's model and transform, and torch's own reading of the file."""
    held = torch.load(root / "model.pt", weights_only=True)
    module = run_timm.create_model(digits.ARCH.name, **digits.ARCH.arguments).eval()
    module.load_state_dict(held["state_dict"])
    transform = run_timm.data.create_transform(
        (1, 64, 64), mean=(0.5,), std=(0.5,), interpolation="bicubic", crop_pct=1
    )
    files = sorted((root / "data/heldout").rglob("*.png"))
    with torch.no_grad():
        logits = torch.cat([module(transform(Image.open(file).convert("L"))[None]) for file in files])
    return logits, [int(file.parent.name) for file in files]


def test_every_prediction_of_the_held_out_digits_is_timms(folder: Path) -> None:
    done = run_main(
        evaluate, folder / "model.pt", "--data", folder / "data/heldout", "--resume", folder / "p.jsonl", "--json"
    )
    assert done.code == 0, done.err
    made = [json.loads(line)["prediction"] for line in (folder / "p.jsonl").read_text("utf-8").splitlines()[1:]]
    logits, labels = by_timm(folder)
    assert len(made) == len(labels) == 359
    assert [each["target"] for each in made] == labels
    assert [each["classes"] for each in made] == logits.topk(5).indices.tolist()
    right = int((logits.argmax(dim=1) == torch.tensor(labels)).sum())
    assert 36 < right < 359, "a model that guesses, or reads everything, compares little"
    (scores,) = (subject["scores"] for subject in done.json()["subjects"])
    assert {score["measure"]: score["value"] for score in scores}["top-1"] == pytest.approx(right / 359)
