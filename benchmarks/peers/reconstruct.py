"""What reconstruction buys a feature model that is pruned to 2:4: cosine of its patch tokens on other photographs.

    python benchmarks/peers/reconstruct.py dino.pt --arch timm:vit_small_patch14_dinov2.lvd142m \
        --arch-arg img_size=224 --arch-arg num_classes=0 --arch-arg global_pool= \
        --json benchmarks/results/reconstruct.json

Photographs and halves are those of prune_quality.py: five to fit on, five to judge on, 64 crops of the latter. All
Linear layers are 2:4. The pass that is kept is chosen on other crops of the photographs that are fitted to, as a user's
held-out images are. To tell photographs from parameters as the limit, the fit is repeated with the grey photographs
beside (`more photographs`), and with crops of the judged ones (`the judged photographs`, the judged crops among them: a
bound, no result; `held_out` of its rows is on crops that it wasn't fitted to). `--photographs FOLDER` fits on crops of
that folder's images instead of all these, and from fifty on chooses by every tenth of them, which it isn't fitted to.

The model that is kept is then judged in INT8 by the default recipe, its inputs' ranges observed on the same crops.

Seconds are those of all steps so far, less the judging, with CPU seconds of the process beside: the machine may have
other work.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from gpusq_deploy.artifacts import PruneMethod, load_recipe
from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.peers.photographs import crops, photographs
from gpusq_deploy.benchmarks.peers.prune_quality import cosine, halves, tokens_of
from gpusq_deploy.calibration import image_files
from gpusq_deploy.frontend import Checkpoint, arch_from_text, load_checkpoint
from gpusq_deploy.sparsity.permutation.arrange import arrange
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions
from gpusq_deploy.sparsity.pruning.whole_model import prune_oneshot
from gpusq_deploy.sparsity.reconstruction.int8 import reconstruct_int8
from gpusq_deploy.sparsity.reconstruction.one_block import Pair
from gpusq_deploy.sparsity.reconstruction.plan import Data, ReconstructOptions
from gpusq_deploy.sparsity.reconstruction.reconstruct import reconstruct
from gpusq_deploy.sparsity.training.qat import int8_layers, observed_scales

_GREY = ("brick.png", "camera.png", "clock_motion.png", "coins.png", "grass.png", "gravel.png", "moon.png")
_JUDGED, _CHOSEN_ON = 64, 32
_MANY, _EVERY = 50, 10
_SMALLEST = 0.4
_BATCH = 16

Row = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class _Clock:
    """Wall and CPU seconds since it was made, less those that were spent while it stood."""

    begun: tuple[float, float] = field(default_factory=lambda: (time.perf_counter(), time.process_time()))

    def row(self) -> Row:
        return {
            "seconds": time.perf_counter() - self.begun[0],
            "cpu_seconds": time.process_time() - self.begun[1],
        }

    def skip(self, row: Row) -> None:
        """Leave out what passed since `row` was taken."""
        spent = self.row()
        self.begun = (
            self.begun[0] + spent["seconds"] - row["seconds"],
            self.begun[1] + spent["cpu_seconds"] - row["cpu_seconds"],
        )


class _Judge:
    def __init__(self, dense: torch.nn.Module, images: torch.Tensor) -> None:
        self.images = images
        self._wanted = tokens_of(dense, images)

    def __call__(self, module: torch.nn.Module) -> float:
        return cosine(self._wanted, tokens_of(module, self.images))


class _Judging(NamedTuple):
    """What chooses the pass, and the clock that stands while it does."""

    own: _Judge
    clock: _Clock


class _Task(NamedTuple):
    """One set of photographs to fit on."""

    checkpoint: Checkpoint
    files: Sequence[Path]
    judge: _Judge
    options: argparse.Namespace

    @property
    def apart(self) -> bool:
        """Whether there are so many photographs that some can be left out of the fit, to choose a pass by."""
        return len(self.files) >= _MANY

    def fitted(self) -> torch.Tensor:
        """Crops to fit on."""
        return self._drawn(self._others() if self.apart else self.files, self.options.crops, seed=0)

    def choosing(self) -> torch.Tensor:
        """Crops to choose a pass by."""
        return self._drawn(self.files[::_EVERY] if self.apart else self.files, _CHOSEN_ON, seed=77)

    def _others(self) -> list[Path]:
        return [path for index, path in enumerate(self.files) if index % _EVERY]

    def _drawn(self, files: Sequence[Path], count: int, *, seed: int) -> torch.Tensor:
        return torch.from_numpy(crops(list(files), self.checkpoint.preprocessing, count, least=_SMALLEST, seed=seed))


def main() -> None:
    """Every row is printed and kept as soon as it is there."""
    options = _options()
    arch = None if options.arch is None else arch_from_text(options.arch, options.arch_arg)
    checkpoint = load_checkpoint(options.model, arch=arch)
    fitted, judged = halves()
    if options.photographs is not None:
        fitted = list(image_files(options.photographs))
    judge = _Judge(
        checkpoint.module, torch.from_numpy(crops(judged, checkpoint.preprocessing, _JUDGED, least=_SMALLEST, seed=0))
    )
    grey = [path for path in photographs(()) if path.name in _GREY]
    head: Row = {
        "what": f"{checkpoint.arch}, every Linear layer 2:4, float32",
        "fitted_on": [path.name for path in fitted],
        "judged_on": [path.name for path in judged],
        "more": [path.name for path in grey],
        "crops": {"fit": options.crops, "judge": _JUDGED, "choose": _CHOSEN_ON},
        "threads": torch.get_num_threads(),
        "environment": msgspec.to_builtins(read_environment()),
    }
    rows: list[Row] = []
    sets = {"": fitted, "more photographs": fitted + grey, "the judged photographs": judged}
    if options.photographs is not None:
        sets = {f"{len(fitted)} others": fitted}
    for name, files in sets.items():
        for row in _rows(_Task(checkpoint, files, judge, options), simple=not name):
            rows.append({"photographs": name, **row})
            print(f"{name:24} {row['row']:24} cosine {row['cosine']:.4f}, CPU {row['cpu_seconds']:.0f} s", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps({**head, "rows": rows}, indent=2) + "\n", "utf-8")


def _rows(task: _Task, *, simple: bool) -> list[Row]:
    """Rows of one set of photographs; `simple` adds those that reconstruction doesn't start from."""
    images, dense = task.fitted(), task.checkpoint.module
    untyped: Any = dense  # named_modules() has a partly open type
    layers = [name for name, child in untyped.named_modules() if isinstance(child, torch.nn.Linear)]
    rows: list[Row] = []
    methods: tuple[PruneMethod, ...] = ("magnitude", "second-order") if simple else ()
    for method in methods:
        clock = _Clock()
        module = prune_oneshot(dense, layers, images, OneshotOptions(method=method)).module
        times = clock.row()
        rows.append({"row": method, "cosine": task.judge(module), **times})
    own = _Judge(dense, task.choosing())
    clock = _Clock()
    arranged = arrange(dense, layers, images, images).module
    pair = Pair(teacher=arranged, student=prune_oneshot(arranged, layers, images, OneshotOptions()).module)
    return [*rows, *_reconstructed(task, pair, layers, images, _Judging(own, clock))]


def _reconstructed(
    task: _Task, pair: Pair, layers: Sequence[str], images: torch.Tensor, judging: _Judging
) -> list[Row]:
    """A row for the start and for each pass; the last one has the errors of the blocks."""
    rows: list[Row] = []

    def quality(module: torch.nn.Module) -> tuple[float]:
        times = judging.clock.row()
        rows.append({"cosine": task.judge(module), "held_out": judging.own(module), **times})
        judging.clock.skip(times)
        return (rows[-1]["held_out"],)

    best, report = reconstruct(
        pair,
        layers,
        Data(images=images, held_out=task.judge.images[:32], quality=quality),
        ReconstructOptions(passes=task.options.passes, gradient_steps=task.options.gradient_steps),
        lambda text: print(text, flush=True),
    )
    for row, done in zip(rows, report.passes, strict=True):
        row |= {"row": f"reconstruct, {done.name}" if done.name != "pruned" else "second-order, permuted"}
        row |= {"fitted": done.fitted, "kept": done.name == report.kept}
    rows[-1]["blocks"] = msgspec.to_builtins(report.blocks)
    rows[-1]["notes"] = list(report.notes)
    data = Data(images=images, held_out=task.judge.images[:32], quality=quality)
    return [*rows, *_in_int8(rows, Pair(teacher=pair.teacher, student=best), data)]


def _in_int8(rows: list[Row], pair: Pair, data: Data) -> list[Row]:
    """The kept model in INT8 by the default recipe, rounded to nearest and reconstructed; `quality` adds to `rows`."""
    before = len(rows)
    scales = observed_scales(
        pair.student, int8_layers(pair.student, load_recipe(None)).calibrators, torch.split(data.images, _BATCH)
    )
    _, report = reconstruct_int8(pair, scales, data, ReconstructOptions(), lambda text: print(text, flush=True))
    found = [rows.pop() for _ in range(len(rows) - before)][::-1]
    for row, name, kept in zip(found, ("rounded to nearest", "reconstructed"), (False, True), strict=True):
        row |= {"row": f"INT8, {name}", "kept": report.kept == kept}
    found[-1]["fitted"] = report.fitted
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Judge reconstruction on photographs that it hasn't seen.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--arch")
    parser.add_argument("--arch-arg", action="append", default=[])
    parser.add_argument("--crops", type=int, default=128, help="to fit on")
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--gradient-steps", type=int, default=150)
    parser.add_argument("--photographs", type=Path, help="a folder: fit on crops of its images alone")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
