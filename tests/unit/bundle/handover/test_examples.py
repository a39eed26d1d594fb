"""infer.py on a pretended GPU, and what it and the C++ program are told of the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from exported import run_python
from handed import engine, handed, spec
from pretended_gpu import write_engine, write_packages

from gpusq_deploy.artifacts.manifest import BatchRange, EngineOptions
from gpusq_deploy.bundle.handover.examples import examples
from gpusq_deploy.bundle.handover.model import HandedModel


def written(model: HandedModel, folder: Path) -> Path:
    folder.mkdir()
    for name in ("infer.py", "model.json"):
        (folder / name).write_bytes(examples(model).files[name])
    return folder


def test_an_engine_is_fed_and_read_in_pieces(tmp_path: Path) -> None:
    """40 samples of at most 32: the second piece goes to the profile that takes it, and nothing is mixed up."""
    model = handed(inputs=(spec("input", -1, 3, 4, 4),), outputs=(spec("output", -1, 5), spec("map", -1, 2, 2)))
    folder = written(model, tmp_path / "out")
    packages = write_packages(tmp_path / "packages")
    profiles = [(1, 1, 8), (9, 32, 32)]
    plan = write_engine(tmp_path / "m.plan", {"input": [-1, 3, 4, 4]}, {"output": [-1, 5], "map": [-1, 2, 2]}, profiles)
    samples = np.random.default_rng(0).random((40, 3, 4, 4), dtype=np.float32)
    np.save(tmp_path / "x.npy", samples)
    done = run_python(folder, "--plan", plan, tmp_path / "x.npy", "--save", tmp_path / "y.npz", path=str(packages))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["profile 1 batch 32", "profile 0 batch 8"]
    sums = samples.reshape(40, -1).sum(axis=1)
    with np.load(tmp_path / "y.npz") as found:
        assert np.allclose(found["output"], np.repeat(sums[:, None], 5, axis=1))
        assert found["map"].shape == (40, 2, 2)


def test_too_few_samples_are_filled_up(tmp_path: Path) -> None:
    model = handed(
        inputs=(spec("input", -1, 2),), preprocessing=None, batch=BatchRange(minimum=4, optimum=4, maximum=8)
    )
    folder = written(model, tmp_path / "out")
    plan = write_engine(tmp_path / "m.plan", {"input": [-1, 2]}, {"output": [-1, 64]}, [(4, 4, 8)])
    np.save(tmp_path / "x.npy", np.ones((3, 2), np.float32))
    words = ("--plan", plan, tmp_path / "x.npy", "--save", tmp_path / "y.npz")
    done = run_python(folder, *words, path=str(write_packages(tmp_path / "packages")))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("profile 0 batch 4\noutput: float32 [3, 64], 2 to 2\n")


@pytest.mark.parametrize(("content", "words"), [(b"not an engine", "doesn't load"), (b"", "doesn't load")])
def test_an_engine_that_does_not_load_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    folder = written(handed(inputs=(spec("input", -1, 2),)), tmp_path / "out")
    (tmp_path / "m.plan").write_bytes(content)
    np.save(tmp_path / "x.npy", np.ones((1, 2), np.float32))
    given = ("--plan", tmp_path / "m.plan", tmp_path / "x.npy")
    done = run_python(folder, *given, path=str(write_packages(tmp_path / "packages")))
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_the_programs_are_told() -> None:
    engines = (
        engine(options=EngineOptions(strip=True)),
        engine("rtx30", "8.6", options=EngineOptions(version_compatible=True)),
    )
    made = examples(handed(outputs=(spec('a "quoted"\n name', -1, 2),), labels=("cat", "ünïcode"), engines=engines))
    assert json.loads(made.files["model.json"])["labels"] == ["cat", "ünïcode"]
    header = made.files["cpp/model.h"].decode()
    assert r'{ "a \042quoted\042\012 name", { -1, 2 } },' in header
    assert r'"\303\274n\303\257code",' in header
    refusals = [remark for remark in made.remarks if "can't load" in remark]
    assert refusals == [
        "the programs can't load engines/a100.plan, gpusq-run can: it has no weights",
        "the programs can't load engines/rtx30.plan, gpusq-run can: it holds a runtime of its own, native code",
    ]
