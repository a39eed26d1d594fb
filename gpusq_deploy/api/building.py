"""A checkpoint in, a bundle with engines out; and further engines of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from gpusq_deploy.api.arguments import PathLike, say_default_target, targets_of
from gpusq_deploy.api.build_options import BuildArguments, BuildOptions, request_of
from gpusq_deploy.api.task_accuracy import judge_of
from gpusq_deploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import QuantizedPrecision
    from gpusq_deploy.bundle import Bundle
    from gpusq_deploy.compile import Extended, Extension, Preview
    from gpusq_deploy.engines import Target


def build(  # noqa: PLR0913 - those options of gpusq-build that most people need; the others are BuildOptions
    model: PathLike,
    *,
    out: PathLike,
    data: PathLike | None = None,
    precision: QuantizedPrecision | None = None,
    sparse: bool = False,
    targets: Sequence[str | Target] | None = None,
    recipe: PathLike | None = None,
    reporter: Reporter | None = None,
    **options: Unpack[BuildOptions],
) -> Bundle:
    """Compile a checkpoint or an ONNX file into a bundle, as gpusq-build does: ONNX with Q/DQ, engines, and the proof.

    Args:
        model: The checkpoint, or an `.onnx` file.
        out: The bundle's folder.
        data: What to calibrate on: a folder of images; a `.npy` or `.npz` of preprocessed float32 [N, C, H, W];
            `package.module:factory`; or `"random"`.
        precision: What the recipe's layers become: `"int8"`, `"fp8"`, `"int4"`; None: all stay float.
        sparse: Require 2:4 weights and allow sparse kernels.
        targets: GPUs to build for, such as `("a100", "orin")`; None: the A100; empty: the ONNX model alone.
        recipe: A TOML file or a shipped recipe's name; None: the one for the precision.
        reporter: Who hears how it goes; nobody.
        options: See `BuildOptions`.

    Raises:
        TypeError: There is no such option.
        GpusqError: Anything that the user can mend; nothing is left behind, but for the evidence of a verification
            that doesn't reach what was asked of it.
    """
    from gpusq_deploy.compile import compile_checkpoint

    heard = reporter or SILENT
    asked: BuildArguments = {
        "data": data,
        "precision": precision,
        "sparse": sparse,
        "targets": targets,
        "recipe": recipe,
        **options,
    }
    request = request_of(model, out, asked, heard)
    return compile_checkpoint(request, heard, judge_of(request, heard))


def preview(
    model: PathLike, *, out: PathLike, reporter: Reporter | None = None, **asked: Unpack[BuildArguments]
) -> Preview:
    """What `build` would make, asked the same: the checkpoint is loaded and exported, and nothing is written.

    Raises:
        TypeError: There is no such option.
        GpusqError: What would also stop the build before calibration.
    """
    from gpusq_deploy import compile as rooms

    heard = reporter or SILENT
    return rooms.preview(request_of(model, out, asked, heard), heard)


def add_engines(
    bundle: PathLike,
    *,
    targets: Sequence[str | Target] | None = None,
    engine_options: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Extended:
    """Build further engines of a bundle, from its model; it needs no torch.

    Args:
        bundle: The bundle's folder, which is replaced whole.
        targets: GPUs to build for; None: the A100.
        engine_options: `"NAME=VALUE"` each (docs/engines.md); what isn't said is as the bundle was made.
        reporter: Who hears how it goes; nobody.

    Returns:
        The bundle, which engines were built, and which weren't, with the reason.

    Raises:
        GpusqError: The bundle is damaged, something is out of a target's reach, or an engine can't be built.
    """
    from gpusq_deploy.compile import extend_bundle

    heard = reporter or SILENT
    say_default_target(targets, heard)
    return extend_bundle(Path(bundle), targets_of(targets), heard, engine_options=engine_options)


def preview_engines(
    bundle: PathLike,
    *,
    targets: Sequence[str | Target] | None = None,
    engine_options: Sequence[str] = (),
    unpack: bool = False,
    reporter: Reporter | None = None,
) -> Extension:
    """Who would build a bundle's further engines, asked as `add_engines`; nothing is written.

    Args:
        bundle: The bundle's folder.
        targets: GPUs to build for; None: the A100.
        engine_options: See `add_engines`.
        unpack: Whether its dense weights are to be made again.
        reporter: Who hears how it goes; nobody.

    Raises:
        GpusqError: What would also stop `add_engines` or `unpack` before work.
    """
    from gpusq_deploy.compile import checked_extension

    say_default_target(targets, reporter or SILENT)
    return checked_extension(Path(bundle), targets_of(targets), engine_options=engine_options, unpack=unpack)


def unpack(bundle: PathLike, *, reporter: Reporter | None = None) -> Bundle:
    """Make a bundle's dense weights again from the packed ones, and check every file.

    Args:
        bundle: The bundle's folder.
        reporter: Who hears how it goes; nobody.

    Raises:
        GpusqError: Nothing is packed, or a file is damaged.
    """
    from gpusq_deploy.compile import unpack_bundle

    return unpack_bundle(Path(bundle), reporter or SILENT)
