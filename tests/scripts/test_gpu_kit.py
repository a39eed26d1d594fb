"""The GPU kit: what it carries, its parts, and the whole of it on a machine without an index and without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gpusq_deploy.artifacts.base import read_value
from gpusq_deploy.benchmarks.gpu import kit, start, wheels
from gpusq_deploy.benchmarks.gpu.values import STEPS, GpuReport
from gpusq_deploy.benchmarks.gpu.wheels import lacking, pinned, unmet_needs

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "benchmarks" / "gpu"
MACHINE = KIT / "machine-packages.txt"


def test_the_kit_brings_what_the_machine_lacks_and_no_more() -> None:
    has = {wheels.canonical(line) for line in MACHINE.read_text().splitlines()}
    rtx = ("tensorrt_rtx_cu13", "tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu13_libs")
    wanted = ("jinja2", "lazy_loader", "leather", "msgspec", *rtx, "polygraphy")
    assert lacking(ROOT / "setup.cfg", has, "3.12") == wanted
    assert "tomli" in lacking(ROOT / "setup.cfg", has, "3.10")
    assert "tomli" not in lacking(ROOT / "setup.cfg", has, "3.11")
    assert "torch" in lacking(ROOT / "setup.cfg", has - {"torch"}, "3.12")
    assert "tensorrt-rtx" in pinned(ROOT / "constraints.txt")


def test_a_need_that_nobody_meets_is_named(tmp_path: Path) -> None:
    wheel = tmp_path / "thing-1-py3-none-any.whl"
    needs = [
        "numpy>=1",
        "absent>2",
        'old; python_version < "3.11"',
        'nice; extra == "all"',
        'win; sys_platform=="win32"',
    ]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "thing-1.dist-info/METADATA", "Name: thing\n" + "".join(f"Requires-Dist: {n}\n" for n in needs)
        )
    assert unmet_needs([wheel], {"numpy"}, "3.12") == {"absent": "absent (of thing-1-py3-none-any.whl)"}
    assert unmet_needs([wheel], {"numpy"}, "3.10") == {name: f"{name} (of {wheel.name})" for name in ("absent", "old")}


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A kit of three parts of a MiB at most."""
    payload, out = tmp_path / "payload", tmp_path / "out"
    payload.mkdir()
    out.mkdir()
    (payload / "big").write_bytes(os.urandom(5 << 19))
    kit.cut(payload, out, 1)
    for name in ("run.sh", "start.py"):
        shutil.copy2(KIT / name, out / name)
    return out


def test_parts_are_small_and_arrive_one_by_one(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted(path.name for path in parts.glob("part-*"))
    assert names == ["part-00", "part-01", "part-02"]
    assert all((parts / name).stat().st_size <= 1 << 20 for name in names)
    there = tmp_path / "there"
    for index, name in enumerate(names):
        arrived = tmp_path / f"arrived{index}"
        arrived.mkdir()
        for one in ("run.sh", "start.py", "manifest.json", name):
            shutil.copy2(parts / one, arrived / one)
        start.add(arrived, there)
        if index < 2:
            with pytest.raises(ValueError, match=r"lacks part-0"):
                start.install(there)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2] for line in said] == [
        "still missing part-01, part-02",
        "still missing part-02",
        "every part is here",
    ]


def test_a_damaged_part_or_one_of_another_kit_is_refused(parts: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    part = parts / "part-01"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="part-01 is damaged"):
        start.add(parts, there)
    manifest = json.loads((parts / "manifest.json").read_text())
    (parts / "manifest.json").write_text(json.dumps({"parts": {**manifest["parts"], "part-09": "0"}}))
    with pytest.raises(ValueError, match="parts of another kit"):
        start.add(parts, there)


def sources() -> Iterator[tuple[Path, str]]:
    """What our wheel holds: every file of the packages that setup.cfg names, and where it is installed."""
    for top, inside in (
        ("gpusq_deploy", ""),
        ("calibration", "calibration/"),
        ("engines", "engines/"),
        ("benchmarks", "benchmarks/"),
    ):
        for path in (ROOT / top).rglob("*"):
            relative = path.relative_to(ROOT / top).as_posix()
            linked = top == "gpusq_deploy" and relative.split("/")[0] in {"calibration", "engines", "benchmarks"}
            beside = top == "benchmarks" and relative.split("/")[0] in {"demo", "gpu", "peers"}
            if path.is_file() and path.suffix in {".py", ".pyi", ".toml", ".typed"} and not (linked or beside):
                yield path, f"gpusq_deploy/{inside}{relative}"


def write_wheel(folder: Path) -> None:
    """Our wheel as pip takes it; setuptools would want an index to build it."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "gpusq_deploy-0-py3-none-any.whl", "w") as archive:
        for path, name in sources():
            archive.write(path, name)
        info = "gpusq_deploy-0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gpusq-deploy\nVersion: 0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
def test_the_whole_kit_on_a_pretended_machine_says_of_each_step_why_it_didnt_run(tmp_path: Path) -> None:
    payload, out, there, results = (tmp_path / name for name in ("payload", "kit", "there", "results"))
    write_wheel(payload / "wheels")
    kit.copy_suite(payload)
    out.mkdir()
    kit.cut(payload, out, 1)
    for name in ("run.sh", "start.py"):
        shutil.copy2(KIT / name, out / name)
    environment = {**os.environ, "PYTHON": sys.executable, "PIP_NO_INDEX": "1", "PYTHONPATH": ""}
    for words in (["--add", str(out)], ["--run", str(results), "--pretend"]):
        script = (out if words[0] == "--add" else there) / "run.sh"
        command = ["sh", str(script), "--kit", str(there), *words]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    names = [f"{index + 1}-{step}.jsonl" for index, step in enumerate(STEPS)]
    assert sorted(path.name for path in results.iterdir()) == sorted([*names, "gpu.json", "log.txt", "report.md"])
    report = read_value(results / "gpu.json", GpuReport)
    assert report.pretended
    for step in STEPS:
        assert report.of(step), f"{step} says nothing"
        for one in report.of(step):
            assert one.why_not, f"{step}: {one.name} claims to have run"
            assert one.samples_ms == ()
    text = (results / "report.md").read_text()
    assert "nothing below is a measurement" in text
    assert "- 384: products: no GPU: " in text
    assert "models: the kit was made without models" in text
    assert "skipped: " in text, "pytest's own tests say why they didn't run"
    assert msgspec.json.decode((results / "gpu.json").read_bytes())["schema"] == "gpusq.gpu-report/1"
