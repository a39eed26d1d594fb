"""A worker process from the side of who asks it: started, asked for samples, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import msgspec

import gpusq_deploy
from gpusq_deploy.artifacts import RuntimeInfo
from gpusq_deploy.benchmarks.cpu_clock import Taken
from gpusq_deploy.benchmarks.load.values import LoadTrial, TrialRequest
from gpusq_deploy.benchmarks.subject import MeasuredModel
from gpusq_deploy.benchmarks.worker import TakeRequest, WorkerReply, WorkerRequest
from gpusq_deploy.errors import GpusqError

_MODULE = "gpusq_deploy.benchmarks.worker"
_GRACE_SECONDS = 5


class WorkerProcess:
    """One fresh process with one session. It starts at once; `opened` waits for it, so that several start together.

    Attributes:
        pid: Of the process.
    """

    def __init__(self, request: WorkerRequest, module: str = _MODULE) -> None:
        """Start it.

        Args:
            request: What it opens.
            module: What it runs.

        Raises:
            GpusqError: The process can't be started.
        """
        self._place = request.path
        try:
            with _ctrl_c_held():
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=_environment(),
                )
        except OSError as error:
            raise GpusqError(f"cannot start a worker process: {error.strerror}", place=sys.executable) from error
        self.pid = self._process.pid
        self._send(request)

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def opened(self) -> RuntimeInfo:
        """Wait until the session is open.

        Raises:
            GpusqError: It can't be opened, or can't take one of the batch sizes.
        """
        info = self._reply().opened
        if info is None:
            raise ValueError("the worker answered something else")
        return info

    def take(self, batch: int, count: int, *, warmup: int = 0) -> tuple[float, ...]:
        """Milliseconds of `count` inferences of one batch size, after `warmup` that don't count.

        Raises:
            GpusqError: The runtime failed, or an output isn't finite.
        """
        return self.take_both(batch, count, warmup=warmup).wall

    def take_both(self, batch: int, count: int, *, warmup: int = 0) -> Taken:
        """The same by both clocks, where the second one is there.

        Raises:
            GpusqError: The runtime failed, or an output isn't finite.
        """
        self._send(TakeRequest(batch=batch, count=count, warmup=warmup))
        reply = self._reply()
        if reply.samples_ms is None:
            raise ValueError("the worker answered something else")
        return Taken(reply.samples_ms, reply.cpu_ms)

    def load(self, request: TrialRequest) -> LoadTrial:
        """What a worker of `benchmarks.load` did under load.

        Raises:
            GpusqError: The runtime failed, or an output isn't finite.
        """
        self._send(request)
        trial = self._reply().trial
        if trial is None:
            raise ValueError("the worker answered something else")
        return trial

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # it is gone already
                    continue
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, request: WorkerRequest | TakeRequest | TrialRequest) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # the reply, or its absence, says why
            return

    def _reply(self) -> WorkerReply:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise GpusqError(
                f"the worker process ended with code {code} and without an answer",
                place=self._place,
                hint="what it printed stands above; --in-process runs the model in this process",
            )
        reply = msgspec.json.decode(line, type=WorkerReply)
        if reply.failure is not None:
            raise reply.failure.error()
        return reply


def request_for(
    subject: MeasuredModel,
    batches: tuple[int, ...],
    *,
    seed: int = 0,
    threads: int | None = None,
    cuda_graph: bool = False,
) -> WorkerRequest:
    """What a worker must know to measure a subject."""
    return WorkerRequest(
        path=str(subject.path.absolute()),
        runtime=subject.choice.name,
        reason=subject.choice.reason,
        batches=batches,
        seed=seed,
        threads=threads,
        cuda_graph=cuda_graph,
        weights=None if subject.weights is None else str(subject.weights.absolute()),
        host_code=subject.host_code,
        allowed=subject.batch,
    )


def _environment() -> dict[str, str]:
    """Ours, with this very package before any other, and without the current folder's modules."""
    own = str(Path(gpusq_deploy.__file__).parent.parent)
    others = os.environ.get("PYTHONPATH")
    path = own if not others else os.pathsep.join([own, others])
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


@contextmanager
def _ctrl_c_held() -> Generator[None]:
    """What is started meanwhile never sees Ctrl-C, not even in its start; this process sees it afterwards."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
