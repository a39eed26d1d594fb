"""What is made of a bundle that exists: further engines, and its dense weights. No torch: a device needs no more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpusq_deploy.artifacts import MANIFEST, RECEIPT, BuiltEngine, EngineOptions, SkippedTarget
from gpusq_deploy.bundle import Bundle, new_bundle, read_bundle, require_accepted, require_whole, seal, write_value
from gpusq_deploy.compile.engine_stage import EngineRequest, build_engines, with_engines
from gpusq_deploy.compile.target_checks import demands_of, require_possible, require_reachable
from gpusq_deploy.engines import BackendChoice, Target, choose_backend, options_from_text, texts_from_options
from gpusq_deploy.frontend import is_bundle
from gpusq_deploy.progress import Reporter
from gpusq_deploy.sparsity import DENSE, PACKED, lacks_dense, packed_index, unpack_dense
from gpusq_deploy.text import counted


class Extended(NamedTuple):
    """A bundle after it was asked for further engines: what was built of them, and what wasn't, with the reason."""

    bundle: Bundle
    built: tuple[BuiltEngine, ...]
    skipped: tuple[SkippedTarget, ...]


class Extension(NamedTuple):
    """What a bundle is to be given, before anything is made of it.

    Attributes:
        bundle: As it is.
        options: For the engines.
        backends: Who would build each target's engine, or why nobody here can; in the targets' order.
        unpacked: How many weights would be restored from packed ones; None where that isn't needed.
    """

    bundle: Bundle
    options: EngineOptions
    backends: tuple[BackendChoice | SkippedTarget, ...]
    unpacked: int | None


def checked_extension(
    path: Path, targets: Sequence[Target], *, engine_options: Sequence[str] = (), unpack: bool = False
) -> Extension:
    """Read a bundle and check all that can be checked before work; nothing is written. See `extend_bundle`.

    Args:
        path: The bundle.
        targets: The GPUs to build for; none where the bundle is only unpacked.
        engine_options: See `extend_bundle`.
        unpack: Whether its dense weights are to be made again, also where they are there.

    Raises:
        GpusqError: The bundle is damaged, or was refused; something is out of a target's reach; nothing is packed.
    """
    bundle = read_bundle(path)
    manifest = bundle.manifest
    if targets:
        require_accepted(bundle)
    options = options_from_text(engine_options, base=manifest.engine)
    require_reachable(demands_of(bundle.plan, options, opset=manifest.opset), targets)
    require_possible(bundle.plan, targets)
    unpack = unpack or lacks_dense(path)
    require_whole(bundle, but=DENSE if unpack else None)
    name, unsaid = os.path.basename(os.path.abspath(path)), texts_from_options(options, base=manifest.engine)
    return Extension(
        bundle,
        options,
        tuple(choose_backend(target, bundle=name, options=unsaid) for target in targets),
        len(packed_index(path / PACKED).tensors) if unpack else None,
    )


def unpack_bundle(path: Path, reporter: Reporter) -> Bundle:
    """Make a bundle's dense weights again from the packed ones, and check every file.

    Raises:
        GpusqError: Nothing is packed, or a file is damaged.
    """
    bundle = read_bundle(path)
    require_whole(bundle, but=DENSE)
    count = unpack_dense(path)
    reporter.say(f"unpacked {counted(count, 'weight')} of {PACKED} into {DENSE}, bit for bit")
    require_whole(bundle)
    return bundle


def extend_bundle(
    path: Path, targets: Sequence[Target], reporter: Reporter, *, engine_options: Sequence[str] = ()
) -> Extended:
    """Build further engines from a bundle that exists; the same model, a new receipt, replaced whole.

    Args:
        path: The bundle.
        targets: The GPUs to build for.
        reporter: Who hears how it goes.
        engine_options: As `options_from_text` reads them; what isn't said is as the bundle was made. The receipt
            records them for the engines that are built, and the command for the device says those that aren't.

    Raises:
        GpusqError: The bundle is damaged, something is out of a target's reach, or an engine can't be built.
    """
    # "." has no name, and is no longer there once the folder is replaced.
    place = Path(os.path.abspath(path))
    checked = checked_extension(path, targets, engine_options=engine_options)
    bundle, manifest = checked.bundle, checked.bundle.manifest
    if checked.unpacked is not None:
        unpack_bundle(path, reporter)
    with new_bundle(place, force=True) as folder:
        shutil.copytree(place, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        engines, skipped = build_engines(
            EngineRequest(
                folder=folder,
                name=place.name,
                plan=bundle.plan,
                sparsity=manifest.sparsity,
                batch=manifest.batch,
                targets=targets,
                reporter=reporter,
                options=checked.options,
                remembered=manifest.engine,
            )
        )
        write_value(folder, RECEIPT, with_engines(bundle.receipt, engines, skipped, reporter))
        seal(folder, manifest)
    return Extended(read_bundle(path if is_bundle(path) else place), engines, skipped)
