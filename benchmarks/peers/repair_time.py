"""A 2:4 model whose channels were shuffled: how long until it is 2:4 again, how many layers are, and is it the same?

    python benchmarks/peers/repair_time.py dino.pt --arch timm:vit_small_patch14_dinov2.lvd142m \
        --arch-arg img_size=224 --arch-arg num_classes=0 --arch-arg global_pool= \
        --json benchmarks/results/repair_time.json

The dense checkpoint is pruned by magnitude. Every set of channels whose order is free is then shuffled, within heads
where it must stay there, and the file goes through `gpusq-validate --repair --permute`. Seconds are those of the whole
repair: check, search, both models run in float64, and the new file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import torch

from gpusq_deploy.artifacts import ArchSpec
from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.bundle import validate
from gpusq_deploy.compile import RepairRequest, repair_checkpoint
from gpusq_deploy.frontend import arch_from_text, load_checkpoint
from gpusq_deploy.sparsity import find_channels
from gpusq_deploy.sparsity.permutation.free_channels import permute_channels
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions
from gpusq_deploy.sparsity.pruning.whole_model import prune_oneshot


def main() -> None:
    """Shuffle, check, repair, check again."""
    options = _options()
    arch = arch_from_text(options.arch, options.arch_arg)
    with tempfile.TemporaryDirectory() as name:
        broken, mended = Path(name) / "broken.pt", Path(name) / "mended.pt"
        sets = _shuffle(options.model, arch, broken, seed=options.seed)
        request = RepairRequest(
            model=broken, arch=arch, recipe=None, near_miss=0, permute=True, out=mended, force=False
        )
        before = _valid(broken, arch)
        start = time.perf_counter()
        repair = repair_checkpoint(request, print)
        seconds = time.perf_counter() - start
        after = _valid(mended if repair.file else broken, arch)
    found: dict[str, Any] = {
        "what": f"{arch}, every Linear layer 2:4 by magnitude, {sets} sets of channels shuffled, seed {options.seed}",
        "layers": before[1],
        "valid_before": before[0],
        "valid_after": after[0],
        "permuted": len(repair.permuted),
        "declined": [f"{item.kind} of {item.place}: {item.reason}" for item in repair.declined],
        "difference": None if repair.proof is None else repair.proof.whole,
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "environment": msgspec.to_builtins(read_environment()),
    }
    print(json.dumps(found, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def _shuffle(model: Path, arch: ArchSpec, path: Path, *, seed: int) -> int:
    """Write the shuffled 2:4 state dict; how many sets of channels were shuffled."""
    module = load_checkpoint(model, arch=arch).module
    untyped: Any = module  # named_modules() has a partly open type
    layers = [name for name, child in untyped.named_modules() if isinstance(child, torch.nn.Linear)]
    pruned = prune_oneshot(module, layers, None, OneshotOptions(method="magnitude")).module
    channels, _ = find_channels(pruned)
    tensors: dict[str, torch.Tensor] = dict(pruned.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for item in channels:
        starts = range(0, item.size, item.segment)
        order = torch.cat([start + torch.randperm(item.segment, generator=generator) for start in starts])
        tensors = permute_channels(tensors, item, order)
    torch.save(tensors, path)
    return len(channels)


def _valid(path: Path, arch: ArchSpec) -> tuple[int, int]:
    """Valid layers, of how many that should be."""
    expected = [layer for layer in validate(path, arch=arch, recipe=None).sparsity.layers if layer.expected]
    return sum(layer.valid for layer in expected), len(expected)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Repair a 2:4 model whose channels were shuffled.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--arch-arg", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
