"""The scripts say what our builder is asked, in flags that trtexec and Polygraphy have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from handed import engine, handed, spec

from gpusq_deploy.artifacts.manifest import BatchRange, EngineOptions
from gpusq_deploy.bundle.handover.model import HandedModel
from gpusq_deploy.bundle.handover.trtexec import polygraphy_flags, trtexec_commands

POLYGRAPHY = str(Path(sys.executable).with_name("polygraphy"))
# Of ours, those that the parsers of trtexec in TensorRT's sources at v10.3.0 and v11.1 both have.
KNOWN = {
    "--onnx",
    "--saveEngine",
    "--skipInference",
    "--timingCacheFile",
    "--stronglyTyped",
    "--profilingVerbosity",
    "--sparsity",
    "--profile",
    "--minShapes",
    "--optShapes",
    "--maxShapes",
    "--memPoolSize",
    "--builderOptimizationLevel",
    "--hardwareCompatibilityLevel",
    "--stripAllWeights",
    "--allowWeightStreaming",
    "--versionCompatible",
}
# Later than 10.3, which a remark says.
LATER = {"--maxTactics"}

EVERYTHING = EngineOptions(
    workspace_mib=512,
    shared_memory_kib=48,
    tactics=7,
    level=4,
    strip=True,
    weight_streaming=True,
    version_compatible=True,
    capturable=True,
    hardware="same-compute-capability",
)


def arguments_of_trtexec(model: HandedModel, folder: Path, *more: str, script: str = "trtexec.sh") -> list[str]:
    """What a script starts trtexec with, which here writes them down and the engine that it is asked for."""
    made = trtexec_commands(model)
    (folder / script).write_bytes(made.files[script])
    tool = folder / "trtexec"
    tool.write_text(
        '#!/bin/sh\nfor word; do case $word in --saveEngine=*) : > "${word#--saveEngine=}";; esac; done\n'
        'printf "%s\\n" "$@" > arguments\n'
    )
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["sh", script, *more], cwd=folder, env=environment, check=True)
    return (folder / "arguments").read_text().splitlines()


def test_the_flags_are_those_of_the_build(tmp_path: Path) -> None:
    words = arguments_of_trtexec(handed(sparse=True, options=EngineOptions(level=5)), tmp_path, "--verbose")
    assert words == [
        "--onnx=./model.onnx",
        "--stronglyTyped",
        "--profilingVerbosity=detailed",
        "--sparsity=enable",
        "--minShapes=input:1x3x32x32",
        "--optShapes=input:8x3x32x32",
        "--maxShapes=input:32x3x32x32",
        "--builderOptimizationLevel=5",
        "--timingCacheFile=timing.cache",
        "--skipInference",
        "--saveEngine=model.plan.part",
        "--verbose",
    ]
    assert (tmp_path / "model.plan").is_file()
    assert not (tmp_path / "model.plan.part").exists()


def test_a_failed_build_leaves_no_engine(tmp_path: Path) -> None:
    (tmp_path / "trtexec.sh").write_bytes(trtexec_commands(handed()).files["trtexec.sh"])
    tool = tmp_path / "trtexec"
    tool.write_text("#!/bin/sh\nexit 3\n")
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "trtexec.sh"], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 3
    assert not (tmp_path / "model.plan").exists()


def test_trtexec_has_every_flag(tmp_path: Path) -> None:
    model = handed(sparse=True, options=EVERYTHING)
    words = arguments_of_trtexec(model, tmp_path)
    assert {word.partition("=")[0] for word in words} == (KNOWN | LATER) - {"--profile"}
    assert "--memPoolSize=workspace:512M,tacticSharedMem:48K" in words
    assert "--hardwareCompatibilityLevel=sameComputeCapability" in words
    assert trtexec_commands(model).remarks == (
        "trtexec has --maxTactics since TensorRT 10.4",
        "trtexec has --hardwareCompatibilityLevel=sameComputeCapability since TensorRT 10.9",
        "trtexec has no flag for capturable, an option of TensorRT-RTX alone",
        "Polygraphy has no flag for tactics=7",
        "Polygraphy has no flag for capturable",
    )


def test_profiles_and_odd_names(tmp_path: Path) -> None:
    ranges = (BatchRange(minimum=1, optimum=1, maximum=1), BatchRange(minimum=2, optimum=8, maximum=16))
    inputs = (spec("images:0", -1, 3, 8, 8), spec("it's", -1, 4))
    words = arguments_of_trtexec(handed(inputs=inputs, options=EngineOptions(profiles=ranges)), tmp_path)
    assert words[3:11] == [
        "--profile=0",
        "--minShapes='images:0':1x3x8x8,'it's':1x4",
        "--optShapes='images:0':1x3x8x8,'it's':1x4",
        "--maxShapes='images:0':1x3x8x8,'it's':1x4",
        "--profile=1",
        "--minShapes='images:0':2x3x8x8,'it's':2x4",
        "--optShapes='images:0':8x3x8x8,'it's':8x4",
        "--maxShapes='images:0':16x3x8x8,'it's':16x4",
    ]


def test_a_fixed_batch_needs_no_shapes(tmp_path: Path) -> None:
    fixed = handed(inputs=(spec("input", 4, 3, 32, 32),), batch=BatchRange(minimum=4, optimum=4, maximum=4))
    assert not [word for word in arguments_of_trtexec(fixed, tmp_path) if "Shapes" in word]


def test_engines_that_were_built_otherwise_have_scripts_of_their_own(tmp_path: Path) -> None:
    other = engine("rtx30", "8.6", options=EngineOptions(level=0))
    ahead = engine("l4", "8.9", backend="tensorrt-rtx")
    model = handed(engines=(engine(), other, ahead))
    names = sorted(name for name in trtexec_commands(model).files if name.endswith(".sh"))
    assert names == ["polygraphy-l4.sh", "polygraphy-rtx30.sh", "polygraphy.sh", "trtexec-rtx30.sh", "trtexec.sh"]
    words = arguments_of_trtexec(model, tmp_path, script="trtexec-rtx30.sh")
    assert "--builderOptimizationLevel=0" in words


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [EngineOptions(), EVERYTHING, EngineOptions(profiles=(BatchRange(minimum=1, optimum=2, maximum=4),) * 2)],
)
def test_polygraphy_takes_the_flags(tmp_path: Path, options: EngineOptions) -> None:
    """It writes a script of what it would do, for which it needs no TensorRT."""
    flags = " ".join(polygraphy_flags(handed(sparse=True, options=options), options))
    command = f"{POLYGRAPHY} run model.onnx --trt {flags} --gen-script made.py"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    made = (tmp_path / "made.py").read_text()
    for wanted in ("strongly_typed=True", "sparse_weights=True", "ProfilingVerbosity.DETAILED"):
        assert wanted in made
    profiles = options.profiles or (handed().batch,)
    assert made.count("Profile().add(") == len(profiles)
    for profile in profiles:
        sizes = (profile.minimum, profile.optimum, profile.maximum)
        low, best, high = (f"[{size}, 3, 32, 32]" for size in sizes)
        assert f"min={low}, opt={best}, max={high}" in made
    if options is EVERYTHING:
        for wanted in (
            "builder_optimization_level=4",
            "strip_plan=True",
            "refittable=True",
            "weight_streaming=True",
            "version_compatible=True",
            "SAME_COMPUTE_CAPABILITY",
            "MemoryPoolType.WORKSPACE: 536870912",
            "MemoryPoolType.TACTIC_SHARED_MEMORY: 49152",
        ):
            assert wanted in made, made
