"""The folder beside the output that an interrupted run leaves, and from which it goes on.

    request.json   what was asked, as digests and options: another request is refused
    start.pt       the pruned student, its masks, and the teacher in its order
    sparse.pt      the student after the first stage, where a second one follows
    training.pt    the latest state of the present stage
    training.a/    with --fsdp the tensors of it, or training.b/: training.pt says which
    result.pt      the output, until it is renamed into its place
    done.json      the report: the run is over, but for the renaming

Each is written beside its name and renamed, so it is whole or isn't there. Processes share one view: the first one
reads, writes and tells the others; of tensors that are sharded each writes and reads its part (`sharded_keeper`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import torch

from gpusq_deploy.artifacts import Value, write_whole, written_whole
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import write_torch
from gpusq_deploy.sparsity.training.distributed import Ranks
from gpusq_deploy.sparsity.training.fingerprint import differences

Part = Literal["start", "sparse", "training", "result"]
_PARTS = ("training", "start", "sparse", "result")
_REQUEST, _DONE = "request.json", "done.json"
SHARDS = ("training.a", "training.b")


class Every(Value):
    """How often a state is kept: after so many steps, else after so many seconds; after each epoch in any case."""

    seconds: float = 600.0
    steps: int | None = None


def folder_of(out: Path) -> Path:
    """Where the state of the run that writes `out` is."""
    return out.with_name(f"{out.name}.resume")


def require_no_state(out: Path) -> None:
    """Refuse to begin anew over an interrupted run.

    Raises:
        GpusqError: There is one.
    """
    if folder_of(out).exists():
        raise GpusqError(
            "an interrupted run left its state there",
            place=str(folder_of(out)),
            hint="--resume goes on from it, --force begins anew",
        )


def was_done(out: Path) -> bool:
    """Whether the run was over when it was killed, so that the output may be its own."""
    return (folder_of(out) / _DONE).exists()


class ResumeFolder:
    """The state of one run; nothing is made before the first write."""

    def __init__(self, out: Path, request: Mapping[str, str], every: Every, processes: Ranks) -> None:
        self._out, self.place, self._request = out, folder_of(out), request
        self.every, self.processes = every, processes
        self._goes_on = False

    def begin(self, *, resume: bool) -> bool:
        """Look what is there; whether there is a state of this request to go on from.

        Another one isn't seen any more, and the first write removes it.

        Raises:
            GpusqError: It is another request's, or damaged.
        """
        found = resume and self.processes.first and (self.place / _REQUEST).exists()
        if found:
            self._require_same()
            self._remove_halves()
        self._goes_on = self.processes.from_first(found)
        return self._goes_on

    def report(self) -> bytes | None:
        """What the run that was over when it was killed had to say; its output is in its place then."""
        done, result = self.place / _DONE, self._path("result")
        found = None
        if self._goes_on and self.processes.first and done.exists():
            found = done.read_bytes()
            if result.exists():
                result.replace(self._out)
            self._remove()
        return self.processes.from_first(found)

    def read(self, part: Part) -> dict[str, Any] | None:
        """A part, in every process; None where there is none.

        Raises:
            GpusqError: It can't be read.
        """
        path = self._path(part)
        content = None
        if self._goes_on and self.processes.first and path.exists():
            try:
                content = cast("dict[str, Any]", torch.load(path, map_location="cpu", weights_only=True))
            except Exception as error:  # whatever torch's reader makes of a damaged file
                raise unreadable(path, error) from error
        return self.processes.from_first(content)

    def write(self, part: Part, content: Mapping[str, Any]) -> None:
        """Keep a part; the first process's."""
        self._write(self._path(part), lambda path: _write_torch(path, content))

    def clear(self, shards: str) -> None:
        """Remove one of the folders of tensors, if it is there; the first process's."""
        self._write(self.place / shards, _remove_folder)

    def finish(self, save: Callable[[Path], None], report: bytes) -> None:
        """Write the output, put it into its place, and remove the state."""
        if self.processes.first:
            self._write(self._path("result"), save)
            self._write(self.place / _DONE, lambda path: write_whole(path, report))
            self._path("result").replace(self._out)
            self._remove()
        self.processes.wait()

    def _write(self, path: Path, write: Callable[[Path], None]) -> None:
        if not self.processes.first:
            return
        with self.writing(path):
            if not self._goes_on:
                self._remove()
                self._goes_on = True
            self.place.mkdir(parents=True, exist_ok=True)
            if not (self.place / _REQUEST).exists():
                write_whole(self.place / _REQUEST, msgspec.json.encode(dict(self._request)))
            write(path)

    @contextmanager
    def writing(self, path: Path) -> Generator[None]:
        """While it is active, what the disk refuses is told."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self.place.rmdir()  # only where nothing was written
            raise GpusqError(
                f"the state of the run can't be written: {error.strerror}",
                place=str(path),
                hint="free some space and go on with --resume: the last good state is kept",
            ) from error

    def _path(self, part: Part) -> Path:
        return self.place / f"{part}.pt"

    def _require_same(self) -> None:
        try:
            was = msgspec.json.decode((self.place / _REQUEST).read_bytes(), type=dict[str, str])
        except msgspec.MsgspecError as error:
            raise GpusqError(
                "not the state of a run", place=str(self.place / _REQUEST), hint="begin anew with --force"
            ) from error
        found = differences(was, self._request)
        if found:
            raise GpusqError(
                f"the interrupted run had {'; '.join(found)}",
                place=str(self.place),
                hint="ask what it was asked, or begin anew with --force and without --resume",
            )

    def _remove_halves(self) -> None:
        """What was being written when the run was killed."""
        for left in self.place.glob(".*"):
            left.unlink()

    def _remove(self) -> None:
        self._remove_halves()
        for name in (*(f"{part}.pt" for part in _PARTS), _DONE, _REQUEST):
            (self.place / name).unlink(missing_ok=True)
        for name in SHARDS:
            _remove_folder(self.place / name)
        with suppress(OSError):  # what isn't ours stays
            self.place.rmdir()


class StageKeeper:
    """Keeps the state of one stage in a folder; see `Keeper`."""

    def __init__(self, folder: ResumeFolder, stage: str) -> None:
        self._folder, self._stage, self._every = folder, stage, folder.every
        self._saved, self._steps = time.monotonic(), 0

    def load(self) -> dict[str, Any] | None:
        """The latest state of this stage."""
        content = self._folder.read("training")
        return content["state"] if content is not None and content["stage"] == self._stage else None

    def due(self, *, epoch_ended: bool) -> bool:
        """After the steps or seconds that were asked for, and at the end of an epoch."""
        if epoch_ended:
            return True
        self._steps += 1
        if self._every.steps is not None:
            return self._steps >= self._every.steps
        return time.monotonic() - self._saved >= self._every.seconds

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep it in place of the one before."""
        self._folder.write("training", {"stage": self._stage, "state": state})
        self._saved, self._steps = time.monotonic(), 0


def unreadable(path: Path, error: Exception) -> GpusqError:
    """What is said of a damaged state."""
    said = next(iter(str(error).splitlines()), type(error).__name__)
    return GpusqError(f"the state can't be read: {said}", place=str(path), hint="begin anew with --force")


def _remove_folder(path: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(path)


def _write_torch(path: Path, content: Mapping[str, Any]) -> None:
    with written_whole(path) as temporary:
        write_torch(temporary, dict(content))
