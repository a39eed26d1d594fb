"""Several builds of one engine: a builder that chooses kernels by timing them makes another engine each time."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import msgspec

from gpusq_deploy.artifacts import MODEL, NO_OPTIONS, BuiltEngine, EngineBuilds, EngineRebuild, digest_of_bytes
from gpusq_deploy.benchmarks.report import builds_text
from gpusq_deploy.benchmarks.subject import MeasuredModel, Rebuilt
from gpusq_deploy.bundle import Bundle, read_bundle, require_whole
from gpusq_deploy.engines import (
    BackendName,
    BuildSettings,
    EngineBuild,
    EngineBuildOptions,
    build_engine,
    find_target,
    texts_from_options,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.progress import Reporter
from gpusq_deploy.sparsity import require_dense


@contextmanager
def rebuilt(subject: MeasuredModel, count: int, reporter: Reporter) -> Generator[MeasuredModel, None, None]:
    """Build a subject's engine several times into a temporary folder.

    Args:
        subject: An engine of a bundle.
        count: How often; at least 2.
        reporter: Who hears how it goes.

    Returns:
        The subject under the model's name, with its builds, which are gone after the measurement.

    Raises:
        GpusqError: Nothing is built for this subject, see `require_rebuildable`; the bundle is damaged; or the engine
            can't be built.
    """
    folder = require_rebuildable(subject)
    engine = subject.engine
    assert engine is not None, "it was required"
    bundle = read_bundle(folder)
    require_dense(folder)
    require_whole(bundle)
    settings = _settings_of(bundle, engine)
    with tempfile.TemporaryDirectory(prefix="gpusq-rebuilds-") as temporary:
        paths: list[Path] = []
        facts: list[EngineRebuild] = []
        version = ""
        for number in range(count):
            reporter.say(f"building {engine.target} with {engine.backend}, {number + 1} of {count}")
            build = _built_anew(bundle, engine, settings, reporter)
            paths.append(Path(temporary) / f"{engine.target}-{number}.plan")
            paths[-1].write_bytes(build.engine_bytes)
            facts.append(_facts(build))
            version = f"{build.backend} {build.version}"
        builds = EngineBuilds(
            target=engine.target,
            version=version,
            options=texts_from_options(settings.options, base=NO_OPTIONS),
            sparse=settings.sparse,
            engines=tuple(facts),
        )
        reporter.say(builds_text(builds))
        yield subject._replace(
            name=f"{folder.resolve().name}/{MODEL}", rebuilt=Rebuilt(tuple(paths), builds, bundle.path / MODEL)
        )


def require_rebuildable(subject: MeasuredModel) -> Path:
    """The bundle whose engine a subject is.

    Raises:
        GpusqError: It runs no engine here, or one that no bundle made.
    """
    if subject.choice.name == "onnxruntime":
        raise GpusqError(
            "nothing is built for onnxruntime, which runs the ONNX model itself",
            place="--rebuilds",
            hint="leave it out, or run this where the bundle's engine runs; --runtime of its backend says why not here",
        )
    if subject.engine is None or subject.reference is None:
        raise GpusqError(
            "an engine outside a bundle doesn't say what it was built from",
            place="--rebuilds",
            hint="give the bundle that gpusq-build made",
        )
    return subject.reference.parent


def _settings_of(bundle: Bundle, engine: BuiltEngine) -> BuildSettings:
    """What the engine's builder was asked; without a timing cache, so that kernels are chosen anew each time."""
    options = bundle.manifest.engine if engine.options is None else engine.options
    return BuildSettings(batch=bundle.manifest.batch, sparse=bundle.plan.sparse_asked, options=options.portable)


def _built_anew(bundle: Bundle, engine: BuiltEngine, settings: BuildSettings, reporter: Reporter) -> EngineBuild:
    options = EngineBuildOptions(
        backend=cast("BackendName", engine.backend),
        progress=reporter.progress,
        place=f"{bundle.path.resolve().name}/{MODEL}",
    )
    return build_engine(bundle.path / MODEL, find_target(engine.target), settings, options)


def _facts(build: EngineBuild) -> EngineRebuild:
    return EngineRebuild(
        engine_digest=digest_of_bytes(build.engine_bytes),
        layers_digest=digest_of_bytes(msgspec.json.encode(build.layers)),
        build_seconds=round(build.seconds, 3),
    )
