"""Several builds of one engine: a builder that chooses kernels by timing them makes another engine each time."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gpusq_deploy.artifacts import MODEL, NO_OPTIONS, EngineBuilds, EngineRebuild, digest_of_bytes
from gpusq_deploy.benchmarks.report import builds_text
from gpusq_deploy.benchmarks.subject import MeasuredModel, Rebuilt
from gpusq_deploy.bundle import read_bundle, require_whole
from gpusq_deploy.compile import built_anew, options_of
from gpusq_deploy.engines import EngineBuild, texts_from_options
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
        The subject with its builds, which are gone after the measurement.

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
    with tempfile.TemporaryDirectory(prefix="gpusq-rebuilds-") as temporary:
        paths: list[Path] = []
        facts: list[EngineRebuild] = []
        version = ""
        for number in range(count):
            reporter.say(f"building {engine.target} with {engine.backend}, {number + 1} of {count}")
            build = built_anew(bundle, engine, reporter)
            paths.append(Path(temporary) / f"{engine.target}-{number}.plan")
            paths[-1].write_bytes(build.engine_bytes)
            facts.append(_facts(build))
            version = f"{build.backend} {build.version}"
        builds = EngineBuilds(
            target=engine.target,
            version=version,
            options=texts_from_options(options_of(engine, bundle.manifest), base=NO_OPTIONS),
            sparse=bundle.plan.sparse_asked,
            engines=tuple(facts),
        )
        reporter.say(builds_text(builds))
        yield subject._replace(rebuilt=Rebuilt(tuple(paths), builds, bundle.path / MODEL))


def require_rebuildable(subject: MeasuredModel) -> Path:
    """The bundle whose engine a subject is.

    Raises:
        GpusqError: It runs no engine here, or one that no bundle made.
    """
    if subject.choice.name == "onnxruntime":
        raise GpusqError(
            f"nothing is built for onnxruntime, which runs the ONNX model itself ({subject.choice.reason})",
            place="--rebuilds",
            hint="leave it out, or run this where the bundle's engine runs",
        )
    if subject.engine is None or subject.reference is None:
        raise GpusqError(
            "an engine outside a bundle doesn't say what it was built from",
            place="--rebuilds",
            hint="give the bundle that gpusq-build made",
        )
    return subject.reference.parent


def _facts(build: EngineBuild) -> EngineRebuild:
    return EngineRebuild(
        engine_digest=digest_of_bytes(build.engine_bytes),
        layers_digest=digest_of_bytes(msgspec.json.encode(build.layers)),
        build_seconds=round(build.seconds, 3),
    )
