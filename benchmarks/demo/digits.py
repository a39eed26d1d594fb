"""The whole way on a laptop: scanned digits, a small vision transformer, 2:4, INT8, an engine, and the proof.

1. data      1,797 real 8x8 scans from scikit-learn, a fixed stratified fifth of them held out, as PNG files
2. train     a timm ViT, dense, FP32; the held-out images are never seen before the last step
3. compress  gpusq-compress: 2:4 by magnitude and distillation from the dense model, then training in INT8
4. build     gpusq-build: INT8 by the ranges that training recorded, Q/DQ ONNX, an engine for the A100
5. bench     gpusq-bench: latency with ONNX Runtime on this machine's CPU
6. summary   held-out accuracy of all three models, sizes, and what was built

Run it with `make demo`. A stage whose inputs haven't changed is reused. Exit 1: INT8 lost more than one point.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

# Before torch is imported: its threads otherwise spin while they wait for each other, and on two cores that something
# else is using too, training then takes five times as long. The commands below inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import click
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import gpusq_deploy

# Every GEMM dimension is a multiple of 64: 64 tokens of 8x8 pixels, heads of 64, and 64 classes, of which 10 are used.
ARCH = gpusq_deploy.ArchSpec(
    source="timm",
    name="vit_tiny_patch16_224",
    arguments={
        "img_size": 64,
        "patch_size": 8,
        "in_chans": 1,
        "embed_dim": 128,
        "depth": 2,
        "num_heads": 2,
        "class_token": False,
        "global_pool": "avg",
        "num_classes": 64,
        "weight_init": "jax",
    },
)
PREPROCESSING = gpusq_deploy.Preprocessing(
    channels=1, height=64, width=64, mean=(0.5,), std=(0.5,), interpolation="bicubic", origin="benchmarks/demo"
)
SEED = 0
EPOCHS, LEARNING_RATE, BATCH = 30, 1e-3, 32
STAGES = ("--stage", "prune,qat", "--epochs", "8,3", "--lr", "1e-3")
COMPRESS = (*STAGES, "--held-out", "0.1", "--seed", str(SEED), "--force", "--json")
BUILD = ("--int8", "--sparse", "--target", "a100", "--force", "--json")
BENCH = ("--runtime", "onnxruntime", "--batch", "1,32", "--repeats", "3")
TOLERANCE = 0.01
OUTPUTS = ("data", "dense.pt", "model.pt", "model.gpusq", "bench.json")
STAMPS = ".stages"

Logits = Callable[[Sequence[Path]], npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine of the bundle, in short."""

    target: str
    gpus: str
    backend: str
    engine_bytes: int
    executed: bool
    sparse_layers: int
    runs_sparse: dict[str, int]
    int8_gemms: int
    gemms: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the demo found; also OUT/summary.json. Accuracies are shares of the held-out images."""

    held_out_images: int
    dense_fp32: float
    sparse_int8: float
    compression: dict[str, float]
    bytes: dict[str, int]
    engines: tuple[Engine, ...]
    skipped: tuple[str, ...]
    onnxruntime_median_ms: dict[str, float]
    seconds: dict[str, float]
    bundle: str


@dataclass(kw_only=True)
class Stages:
    """Runs stages and reuses those whose inputs and outputs are as they were. A stamp is written last."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def run(self, name: str, inputs: tuple[str, ...], output: Path, make: Callable[[], None]) -> None:
        """Make `output`, or reuse it where the digests of `inputs` are those it was made from."""
        stamp = self.folder / STAMPS / name
        wanted = " ".join(inputs)
        if output.exists() and stamp.is_file() and stamp.read_text() == f"{wanted} {digest_of(output)}":
            say(f"== {name}: reused {output}")
            self.seconds[name] = 0.0
            return
        say(f"== {name}")
        stamp.unlink(missing_ok=True)
        start = time.perf_counter()
        make()
        self.seconds[name] = round(time.perf_counter() - start, 1)
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(f"{wanted} {digest_of(output)}")
        say(f"== {name}: {self.seconds[name]} s")


def say(text: str) -> None:
    """Progress, on stderr."""
    click.echo(text, err=True)


def digest_of(path: Path) -> str:
    """Digest of a file, or of every file below a folder."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("\n".join(f"{f.relative_to(path)} {digest_of(f)}" for f in files).encode()).hexdigest()


def digest_of_program() -> str:
    """Digest of this script and of the package: another program makes other results."""
    total = hashlib.sha256(Path(__file__).read_bytes())
    for folder, folders, names in os.walk(Path(gpusq_deploy.__file__).parent, followlinks=True):
        folders[:] = sorted(name for name in folders if name not in {"__pycache__", "demo"})
        for name in sorted(names):
            total.update((Path(folder) / name).read_bytes())
    return total.hexdigest()


def write_data(target: Path) -> None:
    """Write the scans to TARGET/{train,heldout}/DIGIT/NNNN.png, as a whole folder or not at all."""
    digits: Any = importlib.import_module("sklearn.datasets").load_digits()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".data.") as folder:
        held_out = held_out_indices(digits.target)
        for index, (scan, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            part = "heldout" if index in held_out else "train"
            file = Path(folder, "data", part, str(digit), f"{index:04d}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(scan * 255 / 16).astype(np.uint8)).save(file)
        shutil.rmtree(target, ignore_errors=True)
        Path(folder, "data").rename(target)


def held_out_indices(labels: npt.NDArray[np.int64]) -> set[int]:
    """A fifth of each class, chosen by a fixed seed: equal on every machine."""
    rng = np.random.default_rng(SEED)
    chosen: set[int] = set()
    for digit in range(10):
        of_class = rng.permutation(np.flatnonzero(labels == digit))
        chosen.update(int(index) for index in of_class[: round(len(of_class) / 5)])
    return chosen


def images_in(folder: Path) -> list[Path]:
    """All images below a folder, in one order."""
    return sorted(folder.rglob("*.png"))


def digits_of(files: Sequence[Path]) -> npt.NDArray[np.int64]:
    """The digit of each, which its folder names."""
    return np.asarray([int(file.parent.name) for file in files], dtype=np.int64)


def read_images(files: Sequence[Path]) -> npt.NDArray[np.float32]:
    """Images [N, 1, 64, 64] as PREPROCESSING says, from whole scans: nothing is cropped."""
    size = (PREPROCESSING.width, PREPROCESSING.height)
    scans = [Image.open(file).convert("L").resize(size, Image.Resampling.BICUBIC) for file in files]
    pixels = np.stack([np.asarray(scan, dtype=np.float32) for scan in scans])[:, None]
    return np.asarray((pixels / 255 - PREPROCESSING.mean[0]) / PREPROCESSING.std[0], dtype=np.float32)


def train(data: Path, target: Path) -> None:
    """Train the dense model on the training images and save it."""
    torch.manual_seed(SEED)
    files = images_in(data)
    images, labels = torch.from_numpy(read_images(files)), torch.from_numpy(digits_of(files))
    module: torch.nn.Module = importlib.import_module("timm").create_model(ARCH.name, **ARCH.arguments)
    module.train()
    module.get_parameter("pos_embed").data.copy_(grid_positions())
    steps = -(-len(images) // BATCH) * EPOCHS
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15)
    for epoch in range(1, EPOCHS + 1):
        order = torch.randperm(len(images))
        batches = (order[start : start + BATCH] for start in range(0, len(order), BATCH))
        losses = [training_step(module, augmented(images[some]), labels[some], optimizer, schedule) for some in batches]
        if epoch % 5 == 0:
            say(f"epoch {epoch} of {EPOCHS}: training loss {np.mean(losses):.3f}")
    gpusq_deploy.save_checkpoint(target, module.eval(), arch=ARCH, preprocessing=PREPROCESSING)


def training_step(
    module: torch.nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """One step on one batch; its loss."""
    loss = functional.cross_entropy(module(images), labels, label_smoothing=0.05)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    return float(loss.detach())


def grid_positions() -> torch.Tensor:
    """Sine and cosine of each token's row and column, [1, 64 tokens, 128]: a start from which 30 epochs suffice."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    rates = 30.0 ** -(torch.arange(32.0) / 32)
    angles = torch.cat([place.reshape(-1, 1) * rates for place in (rows, columns)], dim=1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[None]


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Turned, scaled and shifted a little, each image by its own draw."""
    angle, scale, x, y = (torch.rand(4, len(images)) * 2 - 1) * torch.tensor([[0.12], [0.1], [0.1], [0.1]])
    cosine, sine = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
    affine = torch.stack([torch.stack([cosine, -sine, x], dim=1), torch.stack([sine, cosine, y], dim=1)], dim=1)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def run_tool(name: str, *arguments: str | Path, stdout: Path) -> None:
    """Run one of our commands as a user would: result to a file, progress to the terminal.

    A session of its own, because subprocess kills a child of ours a quarter of a second after Ctrl-C: too early for it
    to tidy up. It is asked to end instead, and awaited.
    """
    words = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    say("$ " + " ".join([name, *words[1:]]))
    with stdout.open("wb") as stream, subprocess.Popen(words, stdout=stream, start_new_session=True) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if code:
        raise gpusq_deploy.GpusqError(
            f"{name} ended with exit code {code}", place=" ".join(words), hint="its own words are above"
        )


def torch_logits(checkpoint: Path) -> Logits:
    """The checkpoint's model as a function of images."""
    module = gpusq_deploy.load_checkpoint(checkpoint).module

    def run(files: Sequence[Path]) -> npt.NDArray[Any]:
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(read_images(files))))

    return run


def accuracy(logits: Logits, files: Sequence[Path]) -> float:
    """Share of images whose largest of all 64 logits is the digit's."""
    batches = (files[start : start + BATCH] for start in range(0, len(files), BATCH))
    predicted = np.concatenate([logits(batch).argmax(axis=1) for batch in batches])
    return np.count_nonzero(predicted == digits_of(files)) / len(files)


def bundle_accuracy(bundle: gpusq_deploy.OpenBundle, files: Sequence[Path]) -> float:
    """The same of the bundle's graph, INT8 and all, on ONNX Runtime."""
    with bundle.session("onnxruntime") as session:
        (output,) = (spec.name for spec in session.outputs)
        return accuracy(lambda batch: session.run(batch)[output], files)


def median_latencies(file: Path) -> dict[str, float]:
    """Milliseconds by batch size, of all samples that gpusq-bench wrote."""
    samples: dict[str, list[float]] = {}
    for series in json.loads(file.read_text("utf-8"))["series"]:
        samples.setdefault(str(series["batch"]), []).extend(series["samples_ms"])
    return {batch: float(np.median(values)) for batch, values in samples.items()}


def summarise(out: Path, seconds: dict[str, float]) -> Summary:
    """Score the three models on the held-out images and read the receipt and the latencies."""
    images = images_in(out / "data/heldout")
    folder = out / "model.gpusq"
    bundle = gpusq_deploy.open_bundle(folder)
    receipt = bundle.receipt
    files = (out / "dense.pt", out / "model.pt", folder / "model.onnx", *sorted(folder.glob("engines/*")))
    return Summary(
        held_out_images=len(images),
        dense_fp32=accuracy(torch_logits(out / "dense.pt"), images),
        sparse_int8=bundle_accuracy(bundle, images),
        compression=compression_scores(out / "compress.json"),
        bytes={file.name: file.stat().st_size for file in files},
        engines=tuple(
            Engine(
                target=engine.target,
                gpus=engine.gpus,
                backend=f"{engine.backend} {engine.backend_version}",
                engine_bytes=engine.engine_bytes,
                executed=engine.executed,
                sparse_layers=sum(layer.sparse_asked and layer.sparse_weights_valid for layer in engine.layers),
                runs_sparse=dict(Counter(layer.sparse_executed for layer in engine.layers if layer.sparse_asked)),
                int8_gemms=engine.totals.gemms.get("int8", 0),
                gemms=sum(engine.totals.gemms.values()),
            )
            for engine in receipt.engines
        ),
        skipped=tuple(f"{entry.target}: {entry.reason}" for entry in receipt.skipped),
        onnxruntime_median_ms=median_latencies(out / "bench.json"),
        seconds=seconds,
        bundle=str(folder),
    )


def compression_scores(file: Path) -> dict[str, float]:
    """Accuracy after each step of gpusq-compress, on the images that it held out itself."""
    held_out = json.loads(file.read_text())["held_out"]
    names = {"pruned": "2:4", "recovered": "2:4 distilled", "quantized": "2:4 INT8", "trained": "2:4 INT8 trained"}
    return {name: held_out[key] for key, name in names.items()}


def rows_of(summary: Summary) -> Iterator[tuple[str, str]]:
    """The summary as rows of a table."""
    where = f"of {summary.held_out_images} held-out images"
    yield "dense FP32", f"{summary.dense_fp32:.2%} {where} (torch)"
    yield "2:4 INT8", f"{summary.sparse_int8:.2%} {where} (ONNX Runtime on the bundle's model.onnx)"
    shares = ", ".join(f"{name} {share:.2%}" for name, share in summary.compression.items())
    yield "on the way there", f"{shares} (of the images that gpusq-compress held out)"
    for name, size in summary.bytes.items():
        yield name, f"{size / 1e3:,.0f} kB"
    for engine in summary.engines:
        run = "run here" if engine.executed else "not run: no such GPU here"
        yield f"engine {engine.target}", f"{engine.backend}, for {engine.gpus} ({run})"
        yield "INT8 GEMMs", f"{engine.int8_gemms} of {engine.gemms}"
        verdicts = ", ".join(f"{verdict} {count}" for verdict, count in engine.runs_sparse.items())
        yield "2:4 weights", f"valid in {engine.sparse_layers} layers; read back as run by sparse kernels: {verdicts}"
    for entry in summary.skipped:
        yield "no engine", entry
    for batch, milliseconds in summary.onnxruntime_median_ms.items():
        yield f"latency, batch {batch}", f"{milliseconds:.2f} ms, the median of ONNX Runtime on this CPU"
    yield (
        "seconds",
        ", ".join(f"{name} {spent:g}" if spent else f"{name} reused" for name, spent in summary.seconds.items()),
    )
    yield "bundle", summary.bundle


def run_stages(out: Path) -> Summary:
    """All stages in order, each on what the one before it made."""
    stages = Stages(folder=out)
    program = digest_of_program()
    data, dense, model, bundle, bench = (out / name for name in OUTPUTS)
    images = data / "train"

    def compress() -> None:
        run_tool("gpusq-compress", dense, "--data", images, "--out", model, *COMPRESS, stdout=out / "compress.json")

    def build() -> None:
        run_tool("gpusq-build", model, "--out", bundle, *BUILD, stdout=out / "build.json")

    def measure() -> None:
        run_tool("gpusq-bench", bundle, "--json", bench, *BENCH, stdout=out / "bench.txt")

    stages.run("data", (program,), data, lambda: write_data(data))
    stages.run("train", (program, digest_of(images)), dense, lambda: train(images, dense))
    stages.run("compress", (program, digest_of(images), digest_of(dense)), model, compress)
    stages.run("build", (program, digest_of(images), digest_of(model)), bundle, build)
    stages.run("bench", (program, digest_of(bundle)), bench, measure)
    return summarise(out, stages.seconds)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True, metavar="DIR")
@click.option("--fresh", is_flag=True, help="Make every stage again.")
@click.pass_context
def command(context: click.Context, *, out: Path, fresh: bool) -> None:
    """Train, prune, compile and verify a small vision transformer, on the CPU and without a network."""
    out.mkdir(parents=True, exist_ok=True)
    if fresh:
        shutil.rmtree(out / STAMPS, ignore_errors=True)
    try:
        summary = run_stages(out)
    except gpusq_deploy.GpusqError as error:
        raise click.ClickException(str(error)) from error
    (out / "summary.json").write_text(json.dumps(asdict(summary), indent=2))
    table = Table(title=f"{ARCH.source}:{ARCH.name} for digits, from dense FP32 to 2:4 INT8", show_header=False)
    for row in rows_of(summary):
        table.add_row(*row)
    Console().print(table)
    lost = summary.dense_fp32 - summary.sparse_int8
    if lost > TOLERANCE:
        say(f"failed: 2:4 INT8 loses {lost * 100:.2f} points against dense FP32; {TOLERANCE * 100:g} is allowed")
        context.exit(1)


def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM as Ctrl-C, so that the command that runs is ended too."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    command()
