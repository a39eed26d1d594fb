"""A process that holds one model, and runs it on several streams when it is told to; see `benchmarks.worker`."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import IO, TYPE_CHECKING

import msgspec

from gpusq_deploy.benchmarks.load.driving import GIVE_UP, Done, Queue, WallClock, poisson_arrivals
from gpusq_deploy.benchmarks.load.values import LoadTrial, TrialRequest
from gpusq_deploy.benchmarks.worker import WorkerReply, first_opened, run_worker, send_reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpusq_deploy.engines import SharedSession

MODULE = "gpusq_deploy.benchmarks.load.worker"


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Open the session of the first request, then run each further one's trial.

    Args:
        requests: A `WorkerRequest`, then any number of `TrialRequest`s.
        replies: Gets one `WorkerReply` for each.

    Raises:
        GpusqError: The session can't be opened or fails, or an output isn't finite.
    """
    with first_opened(requests, replies) as (session, _):
        for line in requests:
            trial = msgspec.json.decode(line, type=TrialRequest)
            send_reply(replies, WorkerReply(trial=run_trial(session, trial)))


def run_trial(session: SharedSession, request: TrialRequest) -> LoadTrial:
    """Run one trial.

    Raises:
        GpusqError: There is no room for the streams, the runtime failed, or an output isn't finite.
    """
    due = None if request.rate is None else poisson_arrivals(request.rate, request.seconds, request.seed)
    streams = _Streams(session, request, due)
    done = streams.run()
    return LoadTrial(
        request=request,
        due_ms=tuple(1000 * moment for moment in due or ()),
        started_ms=tuple(1000 * entry.started for entry in done),
        done_ms=tuple(1000 * entry.done for entry in done),
    )


class _Streams:
    """Threads with a session each, that begin together once all are warm."""

    def __init__(self, session: SharedSession, request: TrialRequest, due: Sequence[float] | None) -> None:
        self._session = session
        self._request = request
        self._due = due
        self._queue: Queue | None = None
        self._errors: list[BaseException] = []
        self._ready = threading.Barrier(request.streams, action=self._begin)

    def run(self) -> tuple[Done, ...]:
        threads = [threading.Thread(target=self._stream) for _ in range(self._request.streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        assert self._queue is not None
        return self._queue.finished()

    def _begin(self) -> None:
        # Time begins when the last stream is warm.
        until = self._request.seconds if self._due is None else GIVE_UP * self._request.seconds
        self._queue = Queue(WallClock(), self._due, until)

    def _stream(self) -> None:
        from gpusq_deploy.benchmarks.measure import check_finite, normal_feeds

        request = self._request
        try:
            with closing(self._session.another()) as session:
                feeds = normal_feeds(session.inputs, request.batch, request.seed)
                check_finite(session.run(feeds), request.batch)
                infer = session.timer(feeds)
                for _ in range(request.warmup):
                    infer()
                self._ready.wait()
                assert self._queue is not None
                self._queue.work(infer)
        except threading.BrokenBarrierError:
            return  # another stream failed, and says why
        except BaseException as error:
            self._errors.append(error)
            self._ready.abort()
            if self._queue is not None:
                self._queue.stop()


def main() -> None:
    """Serve until stdin ends."""
    run_worker(serve)


if __name__ == "__main__":
    main()
