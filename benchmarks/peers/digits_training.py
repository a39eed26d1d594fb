"""What each part of the training buys: scanned digits, five seeds, with GPUSQ-ViT's ablations and ModelOpt beside.

    python benchmarks/peers/digits_training.py --json benchmarks/results/digits_training.json

Of each seed a dense model is trained as the demo trains it, then made 2:4 (8 epochs) and INT8 (3 epochs, at a tenth of
the rate). Accuracy is that of the epoch that the validation images choose, on the demo's 359 held-out images,
which nothing else sees. INT8 is computed in torch with the arithmetic of the Q/DQ graph. `INT8 by PTQ` is the same
ranges without training; `quantise first` trains in INT8 before pruning, and keeps INT8 while it is pruned. ModelOpt's
rows need `nvidia-modelopt` and are left out without it: its 2:4 and INT8_DEFAULT_CFG, trained by cross entropy on the
same batches for the same number of steps. Seeds that the JSON file has already aren't run again.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import importlib.util
import json
import operator
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.nn import functional

import gpusq_deploy
from gpusq_deploy.artifacts import builtins_from_value, load_recipe
from gpusq_deploy.benchmarks.demo import digits
from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.sparsity import DataRequest, DistillOptions, SplitOptions
from gpusq_deploy.sparsity.pruning.magnitude import Masks, apply_masks, magnitude_masks, prunable_layers
from gpusq_deploy.sparsity.training.data.load import Labels, load_data
from gpusq_deploy.sparsity.training.distill import Recovery, recover
from gpusq_deploy.sparsity.training.losses import block_weights
from gpusq_deploy.sparsity.training.pair import Distilled
from gpusq_deploy.sparsity.training.qat import InputScales, fake_quantized, int8_layers, observed_scales
from gpusq_deploy.sparsity.training.samples import TrainingData
from gpusq_deploy.sparsity.training.tasks.classification import Classification

_SEEDS = 5
_PRUNE_EPOCHS, _QAT_EPOCHS, _RATE, _BATCH = 8, 3, 1e-3, 32
_RANGES_FROM = 128
_MODELOPT_RATE = 1e-4
_TASK = Classification()

Module = torch.nn.Module
Row = dict[str, float]


class Study:
    """One seed's dense model and its data."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self._held = seed, digits.images_in(folder / "data/heldout")
        self.dense = gpusq_deploy.load_checkpoint(folder / f"dense-{seed}.pt").module.eval()
        request = DataRequest(data=str(folder / "data/train"), split=SplitOptions(held_out=0.1, seed=seed))
        self.data: TrainingData = load_data(request, digits.PREPROCESSING, "accuracy", Labels(64, {}))
        self.recipe = load_recipe(None)
        self.layers = prunable_layers(self.dense, self.recipe, (), convolutions=False).pruned

    def accuracy(self, module: Module) -> float:
        """Share of the held-out images that are right."""
        module.eval()
        with torch.no_grad():
            return digits.accuracy(
                lambda files: module(torch.from_numpy(digits.read_images(files))).numpy(), self._held
            )

    def options(self, epochs: int, **changes: float) -> DistillOptions:
        """Of the first stage."""
        made = DistillOptions(epochs=epochs, learning_rate=_RATE, batch_size=_BATCH, seed=self.seed)
        return msgspec.structs.replace(made, **changes)

    def pruned(self) -> tuple[Module, Masks]:
        """A copy of the dense model, 2:4 by magnitude."""
        student, masks = copy.deepcopy(self.dense), magnitude_masks(self.dense, self.layers)
        apply_masks(student, masks)
        return student, masks

    def trained(self, pair: Distilled, options: DistillOptions) -> Recovery:
        """Train a student in place."""
        return recover(pair, self.data, options, lambda _result: None)

    def scales(self, module: Module) -> InputScales:
        """Of a module's inputs, by the recipe's calibrators."""
        images = self.data.train.batch(range(min(_RANGES_FROM, len(self.data.train)))).images
        return observed_scales(module, int8_layers(module, self.recipe).calibrators, torch.split(images, _BATCH))


def two_stages(study: Study, *, weighted: bool = True, **changes: float) -> Row:
    """2:4, INT8 by PTQ and INT8 by training; `changes` are of the loss."""
    student, masks = study.pruned()
    first = Distilled(student=student, teacher=study.dense, masks=masks, task=_TASK)
    done = study.trained(first, study.options(_PRUNE_EPOCHS, **changes))
    row = {"2:4": study.accuracy(student)}
    teacher = copy.deepcopy(student).requires_grad_(requires_grad=False).eval()
    scales = study.scales(student)
    weights = block_weights(done.block_losses) if weighted and done.block_losses else None
    second = Distilled(
        student=student, teacher=teacher, masks=masks, task=_TASK, scales=scales.parameters(), weights=weights
    )
    with fake_quantized(student, scales):
        row["2:4 INT8 by PTQ"] = study.accuracy(student)
        study.trained(second, study.options(_QAT_EPOCHS, learning_rate=0.1 * _RATE, **changes))
        row["2:4 INT8 by QAT"] = study.accuracy(student)
    return row


def quantise_first(study: Study) -> float:
    """The other order: INT8 training of the dense model, then 2:4 in INT8."""
    student = copy.deepcopy(study.dense)
    scales = study.scales(student)
    with fake_quantized(student, scales):
        dense = Distilled(student=student, teacher=study.dense, masks={}, task=_TASK, scales=scales.parameters())
        study.trained(dense, study.options(_QAT_EPOCHS, learning_rate=0.1 * _RATE))
        masks = magnitude_masks(student, study.layers)
        sparse = Distilled(student=student, teacher=study.dense, masks=masks, task=_TASK, scales=scales.parameters())
        study.trained(sparse, study.options(_PRUNE_EPOCHS))
        return study.accuracy(student)


def modelopt(study: Study, mode: str) -> float:
    """ModelOpt's 2:4 by `mode`, 8 epochs, then its INT8, 3 epochs, by cross entropy, as its examples train."""
    sparsity: Any = importlib.import_module("modelopt.torch.sparsity")
    quantization: Any = importlib.import_module("modelopt.torch.quantization")
    images = study.data.train.batch(range(min(_RANGES_FROM, len(study.data.train)))).images
    chunks = torch.split(images, _BATCH)
    config: dict[str, Any] = {"data_loader": [(chunk,) for chunk in chunks], "collect_func": operator.itemgetter(0)}
    module: Any = sparsity.sparsify(copy.deepcopy(study.dense).requires_grad_(requires_grad=True), mode, config=config)
    _cross_entropy(study, module, _PRUNE_EPOCHS, _RATE)
    module = sparsity.export(module)

    def calibrate(model: Any) -> None:
        with torch.no_grad():
            for chunk in chunks:
                model(chunk)

    masks = {
        name: value != 0 for name, value in module.named_parameters() if name.removesuffix(".weight") in study.layers
    }
    module = quantization.quantize(module, quantization.INT8_DEFAULT_CFG, calibrate)
    _cross_entropy(study, module, _QAT_EPOCHS, _MODELOPT_RATE, masks)
    return study.accuracy(module)


def _cross_entropy(
    study: Study, module: Module, epochs: int, rate: float, masks: dict[str, torch.Tensor] | None = None
) -> None:
    data, count = study.data.train, len(study.data.train)
    steps = epochs * -(-count // _BATCH)
    optimizer = torch.optim.AdamW([each for each in module.parameters() if each.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    generator = torch.Generator().manual_seed(study.seed)
    module.train()
    for _ in range(epochs):
        for some in torch.split(torch.randperm(count, generator=generator), _BATCH):
            images, targets = data.batch([int(index) for index in some])
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(module(images), torch.tensor(targets)))
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for name, mask in (masks or {}).items():
                    module.get_parameter(name).mul_(mask)


def cases() -> Iterator[tuple[str, Callable[[Study], Row]]]:
    """What is run of each seed, by name."""
    yield "dense", lambda study: {"dense": study.accuracy(study.dense)}
    yield "both stages", two_stages
    yield "no feature term", lambda study: _last(two_stages(study, gamma=0.0), "no feature term")
    yield "no soft term", lambda study: _last(two_stages(study, beta=0.0), "no soft term")
    yield "no block weights", lambda study: {"no block weights": two_stages(study, weighted=False)["2:4 INT8 by QAT"]}
    yield "quantise first", lambda study: {"quantise first": quantise_first(study)}
    if importlib.util.find_spec("modelopt") is not None:
        for mode in ("sparse_magnitude", "sparsegpt"):
            yield f"ModelOpt {mode}", functools.partial(_of_modelopt, mode=mode)


def _of_modelopt(study: Study, mode: str) -> Row:
    return {f"ModelOpt {mode} + QAT": modelopt(study, mode)}


def _last(row: Row, name: str) -> Row:
    return {f"{name}: {measure}": share for measure, share in row.items() if measure != "2:4 INT8 by PTQ"}


def run_seed(seed: int, folder: Path) -> dict[str, Any]:
    """All accuracies of one seed, and what each case took."""
    digits.SEED = seed
    digits.train(folder / "data/train", folder / f"dense-{seed}.pt")
    study, row, seconds = Study(seed, folder), Row(), dict[str, float]()
    for name, case in cases():
        began = time.process_time()
        row |= case(study)
        seconds[name] = time.process_time() - began
        digits.say(f"seed {seed}: {name}: {row}")
    return {"seed": seed, "accuracy": row, "cpu_seconds": seconds}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean over the seeds, the lowest and highest, and the difference from dense, in points."""
    names = list(dict.fromkeys(name for row in rows for name in row["accuracy"]))
    lines = ["| what | accuracy, mean | lowest, highest | against dense, points |", "|---|---|---|---|"]
    for name in names:
        of_seeds = [(row["accuracy"][name], row["accuracy"]["dense"]) for row in rows if name in row["accuracy"]]
        shares = [share for share, _ in of_seeds]
        lost = statistics.mean(share - dense for share, dense in of_seeds)
        lines.append(
            f"| {name} | {statistics.mean(shares):.2%} | {min(shares):.2%}, {max(shares):.2%} | {100 * lost:+.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the seeds that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=_SEEDS)
    asked = parser.parse_args()
    kept: dict[str, Any] = json.loads(asked.json.read_text()) if asked.json.exists() else {"seeds": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        digits.write_data(folder / "data")
        for seed in range(asked.seeds):
            if seed not in [row["seed"] for row in kept["seeds"]]:
                kept["seeds"].append(run_seed(seed, folder))
                kept["environment"] = builtins_from_value(read_environment())
                asked.json.write_text(json.dumps(kept, indent=1))
    print(table(kept["seeds"]))


if __name__ == "__main__":
    main()
