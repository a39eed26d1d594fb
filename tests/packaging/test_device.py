"""What is done on a device works where only the packages are that it is told to install."""

from __future__ import annotations

import configparser
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import bundles
import pytest

from gpusq_deploy.cli.ending import NOT_ON_DEVICES

ROOT = Path(__file__).resolve().parents[2]
JETSON = ROOT / "docs" / "jetson.md"
# Everything that reads checkpoints, images or traces modules; docs/jetson.md leaves them out.
ABSENT = ("torch", "onnxscript", "PIL", "safetensors", "timm", "torchvision", "transformers")


def run_on_device(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        "from gpusq_deploy.__main__ import group\n"
        "from gpusq_deploy.cli.common import run_command\n"
        f"sys.argv = ['gpusq', *{words!r}]\n"
        "run_command(group)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.slow
def test_a_bundle_is_built_inspected_measured_and_compared_without_torch(tmp_path: Path) -> None:
    bundles.write(tmp_path / "m.gpusq")
    target = "orin" if importlib.util.find_spec("tensorrt_rtx") is None else "a100"
    commands = (
        ("build", "m.gpusq", "--target", target),
        ("inspect", "m.gpusq"),
        ("bench", "m.gpusq", "--runtime", "onnxruntime", "--repeats", "5", "--iterations", "3", "--json", "b.json"),
        ("validate", "m.gpusq"),
        ("compare", "b.json", "b.json"),
    )
    for words in commands:
        done = run_on_device(tmp_path, *words)
        assert "Traceback" not in done.stderr, (words, done.stderr)
        # Two runs of three samples tell nothing apart, and gpusq-compare says so; for orin nothing is built here.
        fine = {"compare": 3, "build": 6 if target == "orin" else 0}.get(words[0], 0)
        assert done.returncode in {0, fine}, (words, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["build", "validate", "calibrate", "compress"])
def test_what_reads_a_checkpoint_says_what_is_missing(tmp_path: Path, command: str) -> None:
    (tmp_path / "m.pt").write_bytes(b"")
    more = {"calibrate": ("--calib", "random", "--out", "o.json"), "compress": ("--data", ".", "--out", "o.pt")}
    done = run_on_device(tmp_path, command, "m.pt", *more.get(command, ()))
    assert done.returncode == 5, done.stderr
    assert re.search(r"error: (torch|pillow) isn't installed here.*\n +try: +pip install \1", done.stderr)
    assert "Traceback" not in done.stderr


def test_the_device_is_told_to_install_everything_else() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    declared = parser["options"]["install_requires"].split("\n")
    wanted = {line.split(";")[0].split(">=")[0].strip() for line in declared if line} - {
        "torch",
        "tensorrt-rtx",
        "tomli",
    }
    told = set(re.findall(r"pip install --no-deps gpusq-deploy\n +pip install (.*)\n", JETSON.read_text())[0].split())
    assert told == wanted - set(NOT_ON_DEVICES.values()) | {"tomli"}
