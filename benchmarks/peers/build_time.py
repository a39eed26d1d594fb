"""How long the default INT8 build of a DINOv2 ViT-S/14 takes, beside another commit's, and a second from kept stages.

    python benchmarks/peers/build_time.py --before CHECKOUT --repeats 3 --json benchmarks/results/build_time.json

CHECKOUT is a work tree of the other commit. The two build in turn, each in a process of its own, on 16 photographs for
one engine (a100). Then one process builds twice: from the checkpoint, and with another recipe from the float graph and
the observations that are kept. Wall seconds of each repeat are kept raw; machines are noisy, so only ratios of one run
mean something.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_ARCH = ("--arch", "timm:vit_small_patch14_dinov2.lvd142m", "--arch-arg", "img_size=224")
_ARCH_ARGUMENTS = ("--arch-arg", "num_classes=0", "--arch-arg", "global_pool=")
_PREPARE = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
import dinov2, photographs
folder = Path(sys.argv[2])
torch.save(dinov2.state_dict(), folder / "dino.pt")
photographs.write_photographs(folder / "photos", photographs.CALIBRATION)
"""


def main() -> None:
    """Build in turn, and write the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="a work tree of the other commit")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--twice", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.twice is not None:
        print(json.dumps(_twice(options.twice)))
        return
    found = _measured(options.before, options.repeats)
    print(json.dumps(found, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _measured(before: Path, repeats: int) -> dict[str, object]:
    seconds: dict[str, list[float]] = {"before": [], "now": [], "first": [], "second": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run(ROOT, "-c", _PREPARE, str(ROOT / "tests" / "support"), name)
        for _ in range(repeats):
            seconds["before"].append(_built(before, folder))
            seconds["now"].append(_built(ROOT, folder))
            first, second = json.loads(_run(ROOT, __file__, "--before", ".", "--twice", name).splitlines()[-1])
            seconds["first"].append(first)
            seconds["second"].append(second)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return {
        "what": "wall seconds of gpusq-build --int8 of a DINOv2 ViT-S/14 on 16 photographs, one engine",
        "seconds": seconds,
        "now_over_before": round(medians["now"] / medians["before"], 3),
        "second_over_first": round(medians["second"] / medians["first"], 3),
    }


def _built(tree: Path, folder: Path) -> float:
    out = folder / "out"
    words = (str(folder / "dino.pt"), *_ARCH, *_ARCH_ARGUMENTS, "--int8", "--calib", str(folder / "photos"))
    start = time.perf_counter()
    _run(tree, "-m", "gpusq_deploy", "build", *words, "--out", str(out), "--force")
    return round(time.perf_counter() - start, 2)


def _run(tree: Path, *words: str) -> str:
    tree = tree.resolve()
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    # -m imports from the working directory before PYTHONPATH.
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def _twice(folder: Path) -> tuple[float, float]:
    """Seconds of a build, and of a second one with another recipe, from what the first has exported and observed."""
    from gpusq_deploy.artifacts import ArchArgument, ArchSpec, BatchRange, load_recipe
    from gpusq_deploy.compile import (
        BuildRequest,
        build_bundle,
        export_graph,
        expressible_recipe,
        observe_graph,
        open_inputs,
    )
    from gpusq_deploy.engines import find_target
    from gpusq_deploy.graph import PassLog
    from gpusq_deploy.progress import SILENT

    def request(recipe: str | None) -> BuildRequest:
        arguments: dict[str, ArchArgument] = {"img_size": 224, "num_classes": 0, "global_pool": ""}
        return BuildRequest(
            model=folder / "dino.pt",
            arch=ArchSpec(source="timm", name="vit_small_patch14_dinov2.lvd142m", arguments=arguments),
            quantize=True,
            sparse=False,
            float_type="fp16",
            recipe=None if recipe is None else load_recipe(Path(recipe)),
            calib=str(folder / "photos"),
            targets=[find_target("a100")],
            batch=BatchRange(minimum=1, optimum=8, maximum=32),
            opset=20,
            out=folder / f"twice-{recipe}",
            force=True,
        )

    start = time.perf_counter()
    first, second = request(None), request("plain_wi8_ai8")
    recipe = expressible_recipe(first)
    opened = open_inputs(first, recipe, SILENT)
    graph = export_graph(first, opened.checkpoint, folder, SILENT, PassLog())
    observed = observe_graph(graph, first, recipe, opened.data, SILENT)
    build_bundle(first, opened, graph, observed, SILENT)
    middle = time.perf_counter()
    observed = observe_graph(graph, second, expressible_recipe(second), opened.data, SILENT, observed.seen)
    build_bundle(second, opened, graph, observed, SILENT)
    return round(middle - start, 2), round(time.perf_counter() - middle, 2)


if __name__ == "__main__":
    main()
