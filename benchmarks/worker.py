"""A process that holds one session and times inferences when it is told to: requests on stdin, replies on stdout.

One JSON object a line. What is settled once per process (address layout, huge pages, placement of threads) is settled
anew in each, as pyperf does it (https://pyperf.readthedocs.io/en/latest/run_benchmark.html).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import msgspec

from gpusq_deploy.artifacts import BatchRange, RuntimeInfo, Value
from gpusq_deploy.benchmarks.cpu_clock import has_cpu_clock, take_samples
from gpusq_deploy.benchmarks.load.values import LoadTrial
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from gpusq_deploy.engines import Session, SharedSession


class WorkerRequest(Value):
    """What a worker opens. `batches` are those that it will be asked for, `allowed` those that the model takes."""

    path: str
    runtime: Literal["tensorrt", "tensorrt-rtx", "onnxruntime"]
    reason: str
    batches: tuple[int, ...]
    seed: int = 0
    threads: int | None = None
    cuda_graph: bool = False
    weights: str | None = None
    host_code: bool = False
    allowed: BatchRange | None = None


class TakeRequest(Value):
    """Run `warmup` inferences of one batch size that don't count, then time `count`."""

    batch: int
    count: int
    warmup: int = 0


class WorkerFailure(Value):
    """A GpusqError on its way to the process that asked."""

    what: str
    place: str | None = None
    hint: str | None = None

    def error(self) -> GpusqError:
        """The error again."""
        return GpusqError(self.what, place=self.place, hint=self.hint)


class WorkerReply(Value):
    """One of these: the session that was opened, samples in ms, queries under load, or what went wrong.

    `cpu_ms` are the samples without waiting for a core, see `cpu_clock`; empty where that isn't measured.
    """

    opened: RuntimeInfo | None = None
    samples_ms: tuple[float, ...] | None = None
    cpu_ms: tuple[float, ...] = ()
    trial: LoadTrial | None = None
    failure: WorkerFailure | None = None


def main() -> None:
    """Serve until stdin ends."""
    run_worker(serve)


def run_worker(serving: Callable[[IO[bytes], IO[bytes]], None]) -> None:
    """Serve stdin until it ends, with replies to stdout; then end this process."""
    # Where Ctrl-C reaches this process too (Windows), whoever asked still ends it, by closing its stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = _private_stdout()
    with suppress(BrokenPipeError):  # whoever asked has ended, or another process failed first
        try:
            serving(sys.stdin.buffer, replies)
        except GpusqError as error:
            failure = WorkerFailure(what=error.what, place=error.place, hint=error.hint)
            send_reply(replies, WorkerReply(failure=failure))
    # The session is closed; what the interpreter would still tidy up is time that the next process waits for.
    sys.stderr.flush()
    os._exit(0)


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Open the session of the first request, then take the samples of each further one.

    Args:
        requests: A `WorkerRequest`, then any number of `TakeRequest`s.
        replies: Gets one `WorkerReply` for each.

    Raises:
        GpusqError: The session can't be opened or fails, or an output isn't finite.
    """
    with first_opened(requests, replies) as (session, request):
        cpu_clock = has_cpu_clock(session.runtime, request.threads)
        timers: dict[int, Callable[[], float]] = {}
        for line in requests:
            wanted = msgspec.json.decode(line, type=TakeRequest)
            if wanted.batch not in timers:
                timers[wanted.batch] = _timer(session, wanted.batch, request.seed)
            take = timers[wanted.batch]
            for _ in range(wanted.warmup):
                take()
            taken = take_samples(take, wanted.count, cpu_clock=cpu_clock)
            send_reply(replies, WorkerReply(samples_ms=taken.wall, cpu_ms=taken.cpu))


@contextmanager
def first_opened(requests: IO[bytes], replies: IO[bytes]) -> Generator[tuple[SharedSession, WorkerRequest]]:
    """The session of the first request, a `WorkerRequest`, once the reply says that it is open; closed at the end.

    Raises:
        GpusqError: It can't be opened, or doesn't take the batch sizes.
    """
    from gpusq_deploy.benchmarks.measure import check_batches

    request = msgspec.json.decode(requests.readline(), type=WorkerRequest)
    with closing(open_requested(request)) as session:
        check_batches(session.inputs, request.batches, request.allowed)
        send_reply(replies, WorkerReply(opened=session_info(session, request)))
        yield session, request


def open_requested(request: WorkerRequest) -> SharedSession:
    """The session that a worker holds.

    Raises:
        GpusqError: It can't be opened.
    """
    path = Path(request.path)
    if request.threads is not None and not request.cuda_graph:
        from gpusq_deploy.engines import open_onnx

        return open_onnx(path, threads=request.threads)
    from gpusq_deploy.engines import open_session  # brings the targets and the GPU's libraries: a tenth of a start

    weights = None if request.weights is None else Path(request.weights)
    return open_session(
        path, request.runtime, weights=weights, cuda_graph=request.cuda_graph, host_code=request.host_code
    )


def session_info(session: Session, request: WorkerRequest) -> RuntimeInfo:
    """What ran the model."""
    return RuntimeInfo(
        name=session.runtime,
        version=session.runtime_version,
        device=session.device,
        threads=request.threads,
        reason=request.reason,
        cuda_graph=request.cuda_graph,
        cuda_api=getattr(session, "cuda_api", None),
    )


def _timer(session: Session, batch: int, seed: int) -> Callable[[], float]:
    from gpusq_deploy.benchmarks.measure import check_finite, normal_feeds

    feeds = normal_feeds(session.inputs, batch, seed)
    # A kernel that meets NaN or overflows may take another path and another time, so sanity comes first.
    check_finite(session.run(feeds), batch)
    return session.timer(feeds)


def _private_stdout() -> IO[bytes]:
    """Our replies' own pipe: what libraries print to stdout goes to stderr."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return own


def send_reply(replies: IO[bytes], reply: WorkerReply) -> None:
    """One line."""
    replies.write(msgspec.json.encode(reply) + b"\n")
    replies.flush()


if __name__ == "__main__":
    main()
