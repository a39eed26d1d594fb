"""What one-shot 2:4 pruning costs a feature model: cosine of its patch tokens on photographs that pruning hasn't seen.

    python benchmarks/peers/prune_quality.py dino.pt --arch timm:vit_small_patch14_dinov2.lvd142m \
        --arch-arg img_size=224 --arch-arg num_classes=0 --arch-arg global_pool= \
        --peer-python PYTHON --json benchmarks/results/prune_quality.json

Photographs are the colour images of at least 300 px that scikit-image and scikit-learn bundle, less two drawings and
the second of a stereo pair. In alphabetical order, every second one is for pruning and the others are for the cosine;
64 seeded crops of each half. All Linear layers are pruned. `--peer-python` is an interpreter that has ModelOpt and
timm: its SparseGPT runs there on the same weights and crops, in turn with ours, and its weights come back to be judged
by the same code. ModelOpt 0.47 takes SparseGPT's choice of weights and leaves the kept ones as they were. Seconds are
those of pruning alone, and of permuting where that comes first.

`--swap` prunes on the other half and judges on the first; `--seed` draws other crops. `--row NAME`, repeatable, runs
those rows alone, and rows are added to a JSON file that is there if it has the same head.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.peers.photographs import crops, photographs
from gpusq_deploy.frontend import Checkpoint, arch_from_text, load_checkpoint, module_from_arch
from gpusq_deploy.sparsity.permutation.arrange import arrange
from gpusq_deploy.sparsity.pruning.one_layer import PLAIN_SPARSEGPT, OneshotOptions
from gpusq_deploy.sparsity.pruning.whole_model import prune_oneshot

_LEFT_OUT = ("color.png", "phantom.png", "motorcycle_right.png")
_CROPS = 64
_BATCH = 8
_OURS, _PEER = "second-order", "ModelOpt SparseGPT"
_ABLATION: Mapping[str, OneshotOptions] = {
    "magnitude": OneshotOptions(method="magnitude"),
    "activation": OneshotOptions(method="activation"),
    "plain SparseGPT": PLAIN_SPARSEGPT,
    "second-order, all tokens": OneshotOptions(token_share=1),
    "second-order, no dense targets": OneshotOptions(dense_targets=False),
    "second-order, no solve steps": OneshotOptions(solve_steps=0),
    "second-order, damping 0.01": OneshotOptions(damping=0.01),
}
_PERMUTED: Mapping[str, OneshotOptions] = {
    "magnitude, permuted": OneshotOptions(method="magnitude"),
    "activation, permuted": OneshotOptions(method="activation"),
    "second-order, permuted": OneshotOptions(),
}
_PEER_SCRIPT = """
import json, sys, time
from pathlib import Path
import modelopt, modelopt.torch.sparsity as mts, timm, torch
folder = Path(sys.argv[1])
asked = json.loads((folder / "arch.json").read_text())
model = timm.create_model(asked["name"], **asked["arguments"])
model.load_state_dict(torch.load(folder / "dense.pt", weights_only=True))
model.eval().requires_grad_(False)
images = torch.load(folder / "images.pt", weights_only=True)
config = {"data_loader": list(images.split(asked["batch"])), "collect_func": lambda batch: batch}
start = time.perf_counter()
model = mts.sparsify(model, "sparsegpt", config=config)
seconds = time.perf_counter() - start
torch.save(mts.export(model).state_dict(), folder / "pruned.pt")
(folder / "peer.json").write_text(json.dumps({"seconds": seconds, "version": modelopt.__version__}))
"""

Row = dict[str, Any]


def main() -> None:
    """Ours and the peer in turn, then the other rows once; every row is printed and kept as soon as it is there."""
    options = _options()
    arch = None if options.arch is None else arch_from_text(options.arch, options.arch_arg)
    checkpoint = load_checkpoint(options.model, arch=arch)
    dealt = halves()[:: -1 if options.swap else 1]
    images, unseen = (
        torch.from_numpy(crops(half, checkpoint.preprocessing, _CROPS, least=0.4, seed=options.seed)) for half in dealt
    )
    wanted = tokens_of(checkpoint.module, unseen)
    head: dict[str, Any] = {
        "what": f"{checkpoint.arch}, every Linear layer 2:4, float32",
        "pruned_on": [path.name for path in dealt[0]],
        "judged_on": [path.name for path in dealt[1]],
        "crops_of_each": _CROPS,
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "environment": msgspec.to_builtins(read_environment()),
    }
    rows = _rows_in(options.json, head)
    for name, prune in _asked(checkpoint, images, options):
        row = prune()
        module = row.pop("module")
        entry = {"row": name, "cosine": cosine(wanted, tokens_of(module, unseen)), **row}
        rows.append(entry)
        print(f"{name:32} cosine {entry['cosine']:.4f}, {entry['seconds']:.1f} s", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps({**head, "rows": rows}, indent=2) + "\n", "utf-8")
    _print_ratios(rows)


def _asked(
    checkpoint: Checkpoint, images: torch.Tensor, options: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], Row]]]:
    """The rows to run, in their order."""
    ours = functools.partial(prune_ours, checkpoint, images)
    repeated = {_OURS: functools.partial(ours, OneshotOptions())}
    if options.peer_python is not None:
        repeated[_PEER] = functools.partial(prune_peer, checkpoint, images, options.peer_python)
    once = {name: functools.partial(ours, chosen) for name, chosen in _ABLATION.items()}
    once |= {name: functools.partial(ours, chosen, permute=True) for name, chosen in _PERMUTED.items()}
    strangers = set(options.row) - {*repeated, *once}
    if strangers:
        sys.exit(f"no such row: {', '.join(strangers)}; there are {', '.join([*repeated, *once])}")
    for name, prune in [*options.repeats * list(repeated.items()), *once.items()]:
        if not options.row or name in options.row:
            yield name, prune


def _rows_in(file: Path | None, head: dict[str, Any]) -> list[Row]:
    """Rows of an earlier run with the same photographs on the same machine."""
    if file is None or not file.exists():
        return []
    held: dict[str, Any] = json.loads(file.read_text("utf-8"))
    rows: list[Row] = held.pop("rows")
    if held != head:
        sys.exit(f"{file} holds rows of another run: {held} is not {head}")
    return rows


def halves() -> tuple[list[Path], list[Path]]:
    """Files for pruning and for judging; nothing is downloaded."""
    chosen = photographs(_LEFT_OUT, modes=("RGB",))
    return chosen[::2], chosen[1::2]


def prune_ours(checkpoint: Checkpoint, images: torch.Tensor, options: OneshotOptions, *, permute: bool = False) -> Row:
    """The pruned module, seconds, and the mean share of importance that 2:4 keeps before and after permuting."""
    untyped: Any = checkpoint.module  # named_modules() has a partly open type
    layers = [name for name, child in untyped.named_modules() if isinstance(child, torch.nn.Linear)]
    start, dense, row = time.perf_counter(), checkpoint.module, Row()
    if permute:
        arranged = arrange(dense, layers, None if options.method == "magnitude" else images, images)
        dense = arranged.module
        kept = [statistics.mean(item.kept[place] for item in arranged.permuted) for place in (0, 1)]
        row = {"kept": kept, "difference": arranged.difference, "permute_seconds": time.perf_counter() - start}
    pruned = prune_oneshot(dense, layers, images, options)
    seconds = time.perf_counter() - start
    return {"module": pruned.module, "seconds": seconds, "options": msgspec.to_builtins(options), **row}


def prune_peer(checkpoint: Checkpoint, images: torch.Tensor, python: Path) -> Row:
    """ModelOpt's in another interpreter: a module with its weights, its seconds and its version."""
    arch = checkpoint.arch
    if arch.source != "timm":
        sys.exit("the peer's process builds timm models only")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = {"name": arch.name, "arguments": arch.arguments, "batch": _BATCH}
        (folder / "arch.json").write_text(json.dumps(asked), "utf-8")
        torch.save(checkpoint.module.state_dict(), folder / "dense.pt")
        torch.save(images, folder / "images.pt")
        done = subprocess.run(
            [str(python), "-c", _PEER_SCRIPT, str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"the peer failed:\n{done.stderr}")
        found = json.loads((folder / "peer.json").read_text("utf-8"))
        state = torch.load(folder / "pruned.pt", weights_only=True)
    module = module_from_arch(arch)
    module.load_state_dict(state)
    return {"module": module.eval(), **found}


def tokens_of(module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Patch tokens [n, T - 1, D]: the output without its first token, which sums up the image."""
    with torch.no_grad():
        return torch.cat([module(part)[:, 1:] for part in torch.split(images, _BATCH)])


def cosine(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """Mean over all patch tokens of all images."""
    return float(torch.nn.functional.cosine_similarity(wanted, got, dim=-1).double().mean())


def _print_ratios(rows: list[Row]) -> None:
    ours, peer = ([row for row in rows if row["row"] == name] for name in (_OURS, _PEER))
    if not (ours and peer):
        return
    seconds = [statistics.median(row["seconds"] for row in part) for part in (peer, ours)]
    away = [1 - statistics.median(row["cosine"] for row in part) for part in (peer, ours)]
    print(f"medians of {len(ours)}: {_PEER} takes {seconds[0] / seconds[1]:.2f} times as long as {_OURS},")
    print(f"and its 1 - cosine is {away[0] / away[1]:.2f} times as large")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Judge one-shot 2:4 pruning on unseen photographs.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--arch")
    parser.add_argument("--arch-arg", action="append", default=[])
    parser.add_argument("--peer-python", type=Path, help="an interpreter with ModelOpt and timm; none: no peer")
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours and the peer's, in turn")
    parser.add_argument("--row", action="append", default=[], help="this row alone; repeatable")
    parser.add_argument("--swap", action="store_true", help="prune on the half that judges, and judge on the other")
    parser.add_argument("--seed", type=int, default=0, help="of the crops")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
