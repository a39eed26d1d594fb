"""gpusq-compress: a dense checkpoint in, a 2:4 checkpoint for gpusq-build out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

import gpusq_deploy
from gpusq_deploy.artifacts import CompressStage, MixedPrecision, PruneMethod, RateSchedule, TrainOptimizer
from gpusq_deploy.cli.command import LOUDNESS, Command
from gpusq_deploy.cli.common import arch_options, echo_json, label_options, reporting, require_arch, run_command
from gpusq_deploy.text import counted

if TYPE_CHECKING:
    from gpusq_deploy.sparsity import Compression, Reconstruction


_GROUPS = (
    ("Most used", ("--data", "--stage", "--method", "--epochs", "--out")),
    (
        "What to prune",
        (
            "--arch",
            "--arch-arg",
            "--state-dict",
            "--recipe",
            "--dense",
            "--convolutions",
            "--prune-images",
            "--permute",
        ),
    ),
    ("Data", ("--annotations", "--reduce-labels", "--augment", "--mixup", "--cutmix", "--held-out", "--seed")),
    (
        "Training",
        (
            *("--lr", "--batch-size", "--teacher", "--loss", "--optimizer", "--schedule"),
            *("--warmup", "--weight-decay", "--ema", "--amp", "--recompute", "--fsdp"),
        ),
    ),
    ("Interrupted runs", ("--resume", "--checkpoint-every")),
    ("Output", ("--force", *LOUDNESS)),
)


def _counts(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        found = tuple(int(number) for number in text.split(","))
    except ValueError:
        found = (-1,)
    if min(found) < 0:
        raise click.BadParameter(f"{text!r} is not a number of epochs, or one for each stage such as 10,5")
    return found


def _weights(_context: click.Context, _option: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not three numbers such as 1,10,5") from None


@click.command(cls=Command, groups=_GROUPS)
@click.argument("model", type=click.Path(path_type=Path))
@arch_options
@click.option(
    "--data",
    required=True,
    metavar="DIR|SHARDS|MODULE:FACTORY",
    help="Train on these images: a folder with one sub-folder per class in the model's order, or flat.",
)
@label_options("Train a detector")
@click.option("--augment", is_flag=True, help="Crop, flip and change training images at random, as timm's recipes do.")
@click.option(
    "--mixup", type=click.FloatRange(min=0), default=0.0, metavar="ALPHA", help="Mix pairs of images (Mixup)."
)
@click.option(
    "--cutmix", type=click.FloatRange(min=0), default=0.0, metavar="ALPHA", help="Paste parts of images (CutMix)."
)
@click.option(
    "--stage",
    type=click.Choice(get_args(CompressStage)),
    default="prune",
    show_default=True,
    help="Then distil the whole model (prune), or fit blocks without labels (reconstruct); and in INT8 too.",
)
@click.option(
    "--method",
    type=click.Choice(get_args(PruneMethod)),
    show_default="magnitude; with --stage reconstruct second-order",
    help="Prune by this method first; activation and second-order use the images (docs/pruning.md).",
)
@click.option(
    "--prune-images",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Use at most this many images for pruning and reconstruction.",
)
@click.option(
    "--epochs",
    callback=_counts,
    metavar="N|N,N",
    show_default="10; none with --stage reconstruct",
    help="Train for this many epochs, one number or one for each stage; 0 trains nothing.",
)
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    default=5e-4,
    show_default=True,
    help="Use this peak learning rate.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Use this many images per training step.",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Hold this share of the images out of training, to measure accuracy on.",
)
@click.option(
    "--permute",
    is_flag=True,
    help="Permute channels first so that 2:4 keeps more magnitude; the model computes the same.",
)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    metavar="FILE|NAME",
    help="Prune what this TOML file or shipped recipe expects to be 2:4, as gpusq-build --recipe does.",
)
@click.option(
    "--dense", multiple=True, metavar="PATTERN", help="Leave these layers dense too, by their names; repeatable."
)
@click.option("--convolutions", is_flag=True, help="Prune Conv2d layers too, along their channels.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed the split and the order of images."
)
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Let this dense checkpoint teach (default: MODEL); a MODEL that is 2:4 already keeps its pattern then.",
)
@click.option(
    "--loss",
    callback=_weights,
    default="1,10,5",
    show_default=True,
    metavar="A,B,C",
    help="Weigh the hard, the soft and the feature loss by these.",
)
@click.option(
    "--optimizer",
    type=click.Choice(get_args(TrainOptimizer)),
    default="adamw",
    show_default=True,
    help="Train by this optimiser; sgd has momentum 0.9.",
)
@click.option(
    "--schedule",
    type=click.Choice(get_args(RateSchedule)),
    default="cosine",
    show_default=True,
    help="Let the learning rate fall to 0, or leave it.",
)
@click.option(
    "--warmup",
    type=click.FloatRange(min=0),
    default=0,
    show_default=True,
    metavar="EPOCHS",
    help="Let the learning rate grow for so many epochs first.",
)
@click.option(
    "--weight-decay", type=click.FloatRange(min=0), default=0.01, show_default=True, help="Decay weights so much."
)
@click.option(
    "--ema",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="DECAY",
    help="Score and keep the moving average of the weights, with a decay such as 0.999.",
)
@click.option(
    "--amp", type=click.Choice(get_args(MixedPrecision)), help="Run forward passes in this precision, by autocast."
)
@click.option(
    "--recompute", is_flag=True, help="Keep no activations of blocks, and run them again: less memory, more time."
)
@click.option(
    "--fsdp", is_flag=True, help="Shard model, gradients and optimiser state over the processes of torchrun (FSDP2)."
)
@click.option("--resume", is_flag=True, help="Go on from the state of an interrupted run, in the folder OUT.resume.")
@click.option(
    "--checkpoint-every",
    default="600s",
    show_default=True,
    metavar="Ns|N",
    help="Keep that state after so many seconds, or steps, and after each epoch.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the checkpoint here (default: MODEL's name-24.pt).",
)
@click.option("--force", is_flag=True, help="Replace a file that is there, and the state of an interrupted run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the text.")
def command(  # noqa: PLR0913 - click hands one argument to each option
    *,
    model: Path,
    arch: str | None,
    arch_args: tuple[str, ...],
    state_dict: str | None,
    data: str,
    annotations: Path | None,
    reduce_labels: bool,
    augment: bool,
    mixup: float,
    cutmix: float,
    stage: CompressStage,
    method: PruneMethod | None,
    prune_images: int,
    epochs: tuple[int, ...] | None,
    lr: float,
    batch_size: int,
    held_out: float,
    permute: bool,
    recipe: Path | None,
    dense: tuple[str, ...],
    convolutions: bool,
    seed: int,
    teacher: Path | None,
    loss: tuple[float, ...],
    optimizer: TrainOptimizer,
    schedule: RateSchedule,
    warmup: float,
    weight_decay: float,
    ema: float | None,
    amp: MixedPrecision | None,
    recompute: bool,
    fsdp: bool,
    resume: bool,
    checkpoint_every: str,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Prune MODEL, a dense checkpoint, to 2:4 and recover it from itself, by distillation or reconstruction.

    The result is a self-describing checkpoint for gpusq-build --sparse. With --stage prune,qat or reconstruct,int8 it
    records the ranges of what was fitted in INT8, and gpusq-build --int8 --sparse needs no --calib. Killed, training
    goes on with --resume.

    Several processes share each batch:

    torchrun --nproc-per-node 2 -m gpusq_deploy compress MODEL --data DIR
    """
    from gpusq_deploy.artifacts import require_input

    require_input(model)
    require_arch(model, arch, arch_args)
    speaks = os.environ.get("RANK", "0") == "0"
    with reporting(silent=not speaks) as reporter:
        result = gpusq_deploy.compress(
            model,
            out=out or Path(f"{model.stem}-24.pt"),
            data=data,
            annotations=annotations,
            reduce_labels=reduce_labels,
            augment=augment,
            mixup=mixup,
            cutmix=cutmix,
            arch=arch,
            arch_args=arch_args,
            state_dict=state_dict,
            stage=stage,
            method=method,
            prune_images=prune_images,
            epochs=epochs[0] if epochs is not None and len(epochs) == 1 else epochs,
            learning_rate=lr,
            batch_size=batch_size,
            held_out=held_out,
            permute=permute,
            dense=dense,
            convolutions=convolutions,
            recipe=recipe,
            seed=seed,
            teacher=teacher,
            loss=loss,
            optimizer=optimizer,
            schedule=schedule,
            warmup=warmup,
            weight_decay=weight_decay,
            ema=ema,
            amp=amp,
            recompute=recompute,
            fsdp=fsdp,
            resume=resume,
            checkpoint_every=checkpoint_every,
            force=force,
            reporter=reporter,
        )
    if not speaks:
        return
    if as_json:
        from gpusq_deploy.artifacts import builtins_from_value

        echo_json(builtins_from_value(result))
    else:
        _print(result)


def _print(result: Compression) -> None:
    from gpusq_deploy.numerics import counting_text

    scores = result.held_out
    click.echo(f"{result.file}: {result.arch}")
    click.echo(f"2:4 ({len(result.pruned)} layers, {result.method}):")
    for layer in result.pruned:
        click.echo(f"  {layer}")
    click.echo(f"dense ({len(result.dense)} layers):")
    for entry in result.dense:
        click.echo(f"  {entry.layer}: {entry.reason}")
    if result.reconstruction is not None:
        _print_reconstruction(result.reconstruction)
    if result.int8:
        click.echo(f"INT8: {counted(len(result.int8), 'layer')}; float ({len(result.float_layers)} layers):")
    for kept in result.float_layers:
        click.echo(f"  {kept.layer}: {kept.reason}")
    if result.counting is not None:
        click.echo(counting_text(result.counting))
    told = (
        *(("dense", scores.dense), ("pruned", scores.pruned), ("recovered", scores.recovered)),
        *(("in INT8", scores.quantized), ("recovered in INT8", scores.trained)),
    )
    shares = ", ".join(f"{name} {share:.2%}" for name, share in told if share is not None)
    click.echo(f"held-out {scores.measure} on {result.held_out_images} images: {shares}")


def _print_reconstruction(done: Reconstruction) -> None:
    click.echo(f"reconstructed on {done.images} images, kept: {done.kept}; relative error behind each block:")
    for block in done.blocks:
        click.echo(f"  {block.block}: pruned {block.pruned:.4f}, reconstructed {block.reconstructed:.4f}")


def main() -> None:
    """Entry point."""
    run_command(command)
