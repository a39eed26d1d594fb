"""Listening to a builder: its log lines, its progress, and a way to stop it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from gpusq_deploy.engines.api import Api

if TYPE_CHECKING:
    import tensorrt as trt

_T = TypeVar("_T")

# Called with a phase's name, the steps done and the steps there are, from the builder's thread.
ProgressCallback = Callable[[str, int, int], None]

_POLL_SECONDS = 0.1


class LogLine(NamedTuple):
    """One message: the name of its severity (VERBOSE, INFO, WARNING, ERROR, INTERNAL_ERROR) and its text."""

    severity: str
    text: str


class BuildLog:
    """Keeps everything that a builder, parser or runtime says."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []

    def add(self, severity: str, text: str) -> None:
        """Keep one message."""
        self.lines.append(LogLine(severity, text))

    def texts(self, *severities: str) -> list[str]:
        """Texts of some severities, each once, in the order of their first appearance; of all where none is named."""
        chosen = (line.text.strip() for line in self.lines if not severities or line.severity in severities)
        return list(dict.fromkeys(chosen))

    def errors(self) -> list[str]:
        """Everything that was said as an error."""
        return self.texts("ERROR", "INTERNAL_ERROR")

    def as_logger(self, api: Api) -> trt.ILogger:
        """A logger for `api`, whose base class exists only at run time, that writes here."""

        def log(_logger: trt.ILogger, severity: trt.ILogger.Severity, text: str) -> None:
            self.add(severity.name, text)

        kind = type("GpusqLogger", (api.ILogger,), {"log": log})
        return cast("trt.ILogger", kind())


class Progress:
    """What a builder is doing, and whether it should go on.

    A failing callback must not unwind through the builder's C++: it stops the build and is raised afterwards.
    """

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._steps: dict[str, int] = {}
        self.stop = threading.Event()
        self.failure: Exception | None = None

    def as_monitor(self, api: Api) -> trt.IProgressMonitor:
        """A progress monitor for `api`, whose base class exists only at run time, that reports here."""

        def phase_start(_monitor: trt.IProgressMonitor, phase: str, _parent: str | None, steps: int) -> None:
            self._steps[phase] = steps

        def phase_finish(_monitor: trt.IProgressMonitor, phase: str) -> None:
            self._steps.pop(phase, None)

        def step_complete(_monitor: trt.IProgressMonitor, phase: str, step: int) -> bool:
            self._tell(phase, step)
            return not self.stop.is_set()

        methods = {"phase_start": phase_start, "phase_finish": phase_finish, "step_complete": step_complete}
        kind = type("GpusqMonitor", (api.IProgressMonitor,), methods)
        return cast("trt.IProgressMonitor", kind())

    def _tell(self, phase: str, step: int) -> None:
        if self._callback is None or self.stop.is_set():
            return
        try:
            self._callback(phase, step + 1, self._steps.get(phase, 0))
        # Raised again when the builder has returned.
        except Exception as failure:
            self.failure = failure
            self.stop.set()


class _Pause:
    """Leaves garbage alone while native code may call back; several may ask for it at once.

    TensorRT holds a lock of its own while it calls the logger. If the collector happens to run then, in any thread, and
    finds an old builder in a cycle, that builder's destructor waits for the same lock, forever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._was_enabled = False

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0 and self._was_enabled:
                gc.enable()


# The collector is one for the whole process.
_NO_COLLECTION = _Pause()


def run_stoppable(work: Callable[[], _T], progress: Progress) -> _T:
    """Run a long native call so that Ctrl-C ends it cleanly.

    The call runs in a thread of its own, because Python handles signals only between the main thread's instructions,
    and a KeyboardInterrupt raised inside a callback would unwind through C++. Ctrl-C asks the builder to stop and
    waits until it has; a second Ctrl-C doesn't wait. Meanwhile no garbage is collected: see `_Pause`.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed meanwhile.
        Exception: Whatever `work` or the progress callback raised.
    """
    results: list[_T] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def target() -> None:
        try:
            with _NO_COLLECTION:
                results.append(work())
        # Raised again in the calling thread.
        except BaseException as failure:
            failures.append(failure)
        finally:
            done.set()

    thread = threading.Thread(target=target, name="gpusq-builder", daemon=True)
    try:
        thread.start()
        # Not join(): before Python 3.13, one that a signal interrupts takes a running thread for a finished one.
        while not done.wait(_POLL_SECONDS):
            pass
    except KeyboardInterrupt:
        progress.stop.set()
        while thread.is_alive() and not done.wait(_POLL_SECONDS):
            pass
        raise
    failure = progress.failure or next(iter(failures), None)
    if failure is not None:
        raise failure
    return results[0]
