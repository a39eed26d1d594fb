"""A dense checkpoint in, a 2:4 checkpoint out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from gpusq_deploy.api.arguments import PathLike, path_of, spec_of
from gpusq_deploy.artifacts import RECONSTRUCTIONS, CompressStage
from gpusq_deploy.progress import SILENT, Reporter
from gpusq_deploy.text import counted

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import (
        ArchArgument,
        ArchSpec,
        MixedPrecision,
        PruneMethod,
        RateSchedule,
        TrainOptimizer,
    )
    from gpusq_deploy.sparsity import Compression, CompressReporter, EpochResult, Every, StepResult


def compress(  # noqa: PLR0913 - one argument for each option of gpusq-compress
    model: PathLike,
    *,
    out: PathLike,
    data: PathLike,
    annotations: PathLike | None = None,
    reduce_labels: bool = False,
    augment: bool = False,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    arch: ArchSpec | str | None = None,
    arch_args: Mapping[str, ArchArgument] | Sequence[str] = (),
    state_dict: str | None = None,
    stage: CompressStage = "prune",
    method: PruneMethod | None = None,
    prune_images: int = 128,
    epochs: int | Sequence[int] | None = None,
    learning_rate: float = 5e-4,
    batch_size: int = 32,
    held_out: float = 0.2,
    permute: bool = False,
    dense: Sequence[str] = (),
    convolutions: bool = False,
    recipe: PathLike | None = None,
    seed: int = 0,
    teacher: PathLike | None = None,
    loss: Sequence[float] = (1.0, 10.0, 5.0),
    optimizer: TrainOptimizer = "adamw",
    schedule: RateSchedule = "cosine",
    warmup: float = 0.0,
    weight_decay: float = 0.01,
    ema: float | None = None,
    amp: MixedPrecision | None = None,
    recompute: bool = False,
    fsdp: bool = False,
    resume: bool = False,
    checkpoint_every: str = "600s",
    force: bool = False,
    reporter: Reporter | None = None,
) -> Compression:
    """Prune a dense checkpoint to 2:4 and recover it from itself, and train it in INT8, as gpusq-compress does.

    Args:
        model: The dense checkpoint.
        out: The self-describing checkpoint to write, for `build(..., sparse=True)`.
        data: Training images: a folder, with one sub-folder per class, flat, or with `images/` and label maps in
            `annotations/`; one that Hugging Face's `save_to_disk` wrote; WebDataset shards, such as
            `"train-{000..015}.tar"` or their folder; or `"package.module:factory"` of a map-style torch Dataset.
        annotations: COCO's file of the boxes in `data`'s images, for a detector.
        reduce_labels: In label maps 0 is no class and 1 is the first, as in ADE20K's files.
        augment: Crop, flip and change training images at random, as timm's recipes do.
        mixup: Alpha of Mixup, 0 for none.
        cutmix: Alpha of CutMix, 0 for none.
        arch: Its architecture, such as `"timm:vit_small_patch16_224"`, where it doesn't describe itself.
        arch_args: Arguments of the architecture, by name or as `"K=V"`.
        state_dict: Which of the file's state dicts, where it holds several.
        stage: What follows pruning. `"prune"` trains the whole model by distillation; `"prune,qat"` then trains it in
            INT8 and records its inputs' ranges; `"reconstruct"` fits the blocks one after another to the dense ones
            without labels, from the method `"second-order"` with `permute`; `"reconstruct,int8"` then fits them in INT8
            and records the ranges.
        method: How weights are chosen before: `"magnitude"`, `"activation"` or `"second-order"`; None: the first, or
            the last where the model is reconstructed.
        prune_images: At most this many images serve pruning and reconstruction, and the first ranges.
        epochs: Of training, one number, or two for `"prune,qat"`; 0 trains nothing; None: 10, or none where the model
            is reconstructed.
        learning_rate: The peak; a tenth of it in INT8.
        batch_size: Images per training step.
        held_out: Share of the images that is kept out of training, to measure accuracy on.
        permute: Permute channels first so that 2:4 keeps more magnitude.
        dense: Patterns of layers to leave dense.
        convolutions: Prune Conv2d layers too.
        recipe: Which layers become 2:4: a TOML file or a shipped recipe's name; None: the default one.
        seed: Of the split and the order of images.
        teacher: The dense checkpoint that teaches; None: the model itself. With it a model that is 2:4 already keeps
            its pattern and is trained on.
        loss: Weights of the hard, the soft and the feature loss.
        optimizer: `"adamw"`, or `"sgd"` with momentum 0.9.
        schedule: Of the learning rate: `"cosine"` to 0, or `"constant"`.
        warmup: Epochs over which the learning rate grows to its peak first.
        weight_decay: Of the optimiser.
        ema: Decay of the moving average of the weights, such as 0.999, which then is scored and kept; None: no average.
        amp: Forward passes by autocast in `"bf16"` or `"fp16"`; None: in float32.
        recompute: Keep no activations of the blocks, and run them again for the gradient: less memory, more time.
        fsdp: Of several processes each holds only a part of the model, its gradients and the optimiser's state (FSDP2).
        resume: Go on from the state of an interrupted run, in the folder `<out>.resume`, where there is one.
        checkpoint_every: How often that state is kept beside each epoch's end: `"600s"`, or a number of steps.
        force: Replace a file that is there, and the state of an interrupted run.
        reporter: Who hears how it goes; nobody.

    Returns:
        What was pruned and what wasn't, the held-out scores of the dense, the pruned and the recovered model, and what
        reconstruction did.

    Raises:
        GpusqError: A bad checkpoint or folder, labels that don't fit the model, divergence, no blocks to reconstruct,
            the output exists, or the interrupted run was another request's.
    """
    from gpusq_deploy.sparsity import CompressRequest, DataRequest, DistillOptions, SplitOptions, compress_checkpoint

    place, heard = Path(model), reporter or SILENT
    rebuilds = stage in RECONSTRUCTIONS
    prune_epochs, qat_epochs = _epochs(stage, epochs)
    alpha, beta, gamma = _loss_weights(loss)
    training = DistillOptions(
        epochs=prune_epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        weight_decay=weight_decay,
        optimizer=optimizer,
        schedule=schedule,
        warmup=warmup,
        ema=ema,
        amp=amp,
        recompute=recompute,
        fsdp=fsdp,
    )
    request = CompressRequest(
        model=place,
        arch=spec_of(place, arch, arch_args),
        state_dict=state_dict,
        data=DataRequest(
            data=str(data),
            split=SplitOptions(held_out=held_out, seed=seed),
            annotations=path_of(annotations),
            reduce_labels=reduce_labels,
            augment=augment,
            mixup=mixup,
            cutmix=cutmix,
        ),
        dense=tuple(dense),
        convolutions=convolutions,
        training=training,
        out=Path(out),
        force=force,
        stage=stage,
        method=method or ("second-order" if rebuilds else "magnitude"),
        prune_images=prune_images,
        permute=permute or rebuilds,
        recipe=path_of(recipe),
        qat_epochs=qat_epochs,
        teacher=path_of(teacher),
        resume=resume,
        every=_every(checkpoint_every),
    )
    return compress_checkpoint(request, _compress_reporter(heard))


def _compress_reporter(heard: Reporter) -> CompressReporter:
    from gpusq_deploy.sparsity import CompressReporter

    def step(result: StepResult) -> None:
        if heard.detail is not None:
            heard.detail("training", _step_text(result))
        done = (result.epoch - 1) * result.steps + result.step
        heard.progress("training", done, result.epochs * result.steps)

    return CompressReporter(say=heard.say, epoch=lambda result: heard.say(_epoch_text(result)), step=step)


def _loss_weights(loss: Sequence[float]) -> tuple[float, float, float]:
    """The three weights.

    Raises:
        RequestError: Not three, one is negative or not finite, or all are zero.
    """
    from gpusq_deploy.compile import RequestError

    if len(loss) != 3 or not all(0 <= weight < math.inf for weight in loss) or not any(loss):
        raise RequestError(
            "the loss has three weights, of the hard, the soft and the feature term, none negative and not all 0",
            place=f"loss {', '.join(f'{weight:g}' for weight in loss)}",
            hint="1,10,5 is usual",
        )
    alpha, beta, gamma = loss
    return alpha, beta, gamma


def _every(text: str) -> Every:
    """`600s`, or a number of steps.

    Raises:
        RequestError: Neither.
    """
    from gpusq_deploy.compile import RequestError
    from gpusq_deploy.sparsity import Every

    try:
        count = float(text[:-1]) if text.endswith("s") else int(text)
    except ValueError:
        count = 0
    if not 0 < count < math.inf:
        raise RequestError(
            "neither seconds nor a number of steps", place=f"checkpoint-every {text}", hint="such as 600s, or 1000"
        )
    return Every(seconds=count) if text.endswith("s") else Every(steps=int(count))


def _epochs(stage: CompressStage, epochs: int | Sequence[int] | None) -> tuple[int, int | None]:
    """Those of pruning, and of quantisation-aware training where it is a stage.

    Raises:
        RequestError: An unknown stage, another number of epochs than stages, or a negative one.
    """
    from gpusq_deploy.compile import RequestError

    stages = get_args(CompressStage)
    if stage not in stages:
        raise RequestError("there is no such stage", place=f"stage {stage!r}", hint=f"one of {', '.join(stages)}")
    rebuilds = stage in RECONSTRUCTIONS
    count, usual = 1 if rebuilds else stage.count(",") + 1, 0 if rebuilds else 10
    asked = usual if epochs is None else epochs
    each = [asked] * count if isinstance(asked, int) else list(asked)
    if len(each) != count:
        raise RequestError(f"{len(each)} numbers of epochs for {counted(count, 'stage')}", place=f"stage {stage}")
    if min(each) < 0:
        raise RequestError(f"{min(each)} epochs can't be trained", place="epochs")
    return each[0], each[1] if count > 1 else None


def _step_text(result: StepResult) -> str:
    """The epoch, the terms of the loss without their weights, and the rate."""
    terms = f"hard {result.hard:.3f}, soft {result.soft:.3f}, feature {result.feature:.3f}"
    return f"epoch {result.epoch} of {result.epochs}, {terms}, {result.rate:.3g} images/s"


def _epoch_text(result: EpochResult) -> str:
    scored = f"agrees with the dense model on {result.agreement:.2%}"
    if result.score is not None:
        scored = f"held-out {result.measure} {result.score:.2%}, {scored}"
    return f"epoch {result.epoch} of {result.epochs}: loss {result.loss:.4f}, {scored}"
