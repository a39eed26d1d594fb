"""Layer lists of models, built in a process beside this one.

A builder calls Python for each line of its log, so in a thread it and whatever else runs would wait for each other.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import msgspec

import gpusq_deploy
from gpusq_deploy.artifacts import EngineLayer, Value
from gpusq_deploy.engines.cost import layers_at
from gpusq_deploy.engines.targets import Target
from gpusq_deploy.errors import GpusqError

_RUN = "from gpusq_deploy.engines.layer_lists import main; main()"
_ROOT = Path(gpusq_deploy.__file__).absolute().parents[1]

LayerLists = tuple[tuple[EngineLayer, ...], ...]


class _Asked(Value):
    models: tuple[str, ...]
    target: Target
    batch: int


class _Answer(Value):
    layers: LayerLists = ()
    error: str | None = None


@contextmanager
def layers_apart(models: Sequence[Path], target: Target, batch: int) -> Generator[Callable[[], LayerLists]]:
    """Start building each model for one batch size; what is yielded waits, and returns their layers in order.

    Leaving ends a build that goes on. See `layers_at`.

    Args:
        models: Strongly typed models, each beside its external data.
        target: The GPU to build for, ahead of time.
        batch: The one batch size.

    Raises:
        GpusqError: A model can't be built; when the layers are asked for.
        OSError: No process can be started.
    """
    asked = _Asked(models=tuple(str(model.absolute()) for model in models), target=target, batch=batch)
    inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    paths = os.pathsep.join([str(_ROOT), *map(os.path.abspath, inherited)])
    with TemporaryFile() as answer, TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, msgspec.json.encode(asked).decode()],
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=said,
            # Nothing in the user's folder may stand in for a library.
            cwd=models[0].absolute().parent,
            env={**os.environ, "PYTHONPATH": paths},
        )

        def layers() -> LayerLists:
            code = process.wait()
            answer.seek(0)
            said.seek(0)
            return _layers(code, answer.read(), said.read())

        try:
            yield layers
        finally:
            process.kill()
            process.wait()


def _layers(code: int, answer: bytes, said: bytes) -> LayerLists:
    if code:
        last = said.decode(errors="replace").strip().rpartition("\n")[2].strip()
        raise GpusqError(f"the builder's process ended with {code}: {last or 'it gave no reason'}")
    found = msgspec.json.decode(answer, type=_Answer)
    if found.error is not None:
        raise GpusqError(found.error)
    return found.layers


def main() -> None:
    """Build what the first argument asks for; the answer goes to stdout."""
    asked = msgspec.json.decode(sys.argv[1], type=_Asked)
    # The builder's libraries may write to stdout too.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        found = _Answer(layers=tuple(_built(Path(model), asked) for model in asked.models))
    except GpusqError as error:
        found = _Answer(error=error.what)
    with answer:
        answer.write(msgspec.json.encode(found))


def _built(model: Path, asked: _Asked) -> tuple[EngineLayer, ...]:
    return layers_at(model, asked.target, asked.batch, backend="tensorrt-rtx")
