"""Worker processes, with real ones on a tiny model."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx.parser
import pytest

from gpusq_deploy.artifacts import BatchRange
from gpusq_deploy.benchmarks.cpu_clock import Taken, has_cpu_clock, take_samples
from gpusq_deploy.benchmarks.pairs import TURN, Length, Span, log_ratio, pairs_at_once, take_pairs, turns_within
from gpusq_deploy.benchmarks.placement import share_core
from gpusq_deploy.benchmarks.worker import TakeRequest, WorkerReply, WorkerRequest, serve
from gpusq_deploy.benchmarks.worker_process import WorkerProcess
from gpusq_deploy.errors import GpusqError

MakeRequest = Callable[..., WorkerRequest]


@pytest.fixture
def request_of(tmp_path: Path) -> MakeRequest:
    def make(operator: str = "Relu", **changes: object) -> WorkerRequest:
        path = tmp_path / f"{operator}.onnx"
        text = f'<ir_version: 8, opset_import: ["" : 17]> t (float[N, 3] x) => (float[N, 3] y) {{ y = {operator}(x) }}'
        path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
        made = WorkerRequest(path=str(path), runtime="onnxruntime", reason="a test", batches=(1, 4), threads=1)
        return msgspec.structs.replace(made, **changes)

    return make


def served(request: WorkerRequest, *takes: TakeRequest) -> list[WorkerReply]:
    requests = io.BytesIO(b"".join(msgspec.json.encode(line) + b"\n" for line in (request, *takes)))
    replies = io.BytesIO()
    serve(requests, replies)
    return [msgspec.json.decode(line, type=WorkerReply) for line in replies.getvalue().splitlines()]


def test_a_worker_answers_each_request_once(request_of: MakeRequest) -> None:
    opened, first, second = served(request_of(), TakeRequest(batch=4, count=3, warmup=2), TakeRequest(batch=1, count=1))
    assert opened.opened is not None
    assert (opened.opened.name, opened.opened.threads, opened.opened.reason) == ("onnxruntime", 1, "a test")
    assert first.samples_ms is not None
    assert second.samples_ms is not None
    assert (len(first.samples_ms), len(second.samples_ms)) == (3, 1)
    assert min(first.samples_ms) > 0


def test_a_worker_refuses_outputs_that_are_not_finite(request_of: MakeRequest) -> None:
    # The logarithm of standard-normal inputs is NaN for half of them.
    with pytest.raises(GpusqError, match="values of output 'y' are not finite at batch 4"):
        served(request_of("Log"), TakeRequest(batch=4, count=1))


def test_processes_are_fresh_and_their_errors_come_home(request_of: MakeRequest) -> None:
    request = request_of()
    with WorkerProcess(request) as one, WorkerProcess(request) as other:
        assert one.opened() == other.opened()
        assert len(one.take(1, 2, warmup=1)) == 2
    with WorkerProcess(request_of(allowed=BatchRange(minimum=1, optimum=1, maximum=1))) as small:
        with pytest.raises(GpusqError, match="can't take batch 4; allowed: 1 only") as caught:
            small.opened()
        assert caught.value.place == "--batch"
    with WorkerProcess(request_of("Log")) as broken:
        broken.opened()
        with pytest.raises(GpusqError, match="are not finite"):
            broken.take(4, 1)


def test_a_process_whose_asker_is_gone_ends_without_a_word(request_of: MakeRequest, tmp_path: Path) -> None:
    """As where several start together and another one fails first."""
    broken = msgspec.structs.replace(request_of(), path=str(tmp_path / "none.onnx"))
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        command = [sys.executable, "-m", "gpusq_deploy.benchmarks.worker"]
        line = msgspec.json.encode(broken) + b"\n"
        done = subprocess.run(command, input=line, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="there Ctrl-C can't be held back from a process that starts")
def test_ctrl_c_is_for_the_asker_alone(request_of: MakeRequest, capfd: pytest.CaptureFixture[str]) -> None:
    with WorkerProcess(request_of()) as worker:
        os.kill(worker.pid, signal.SIGINT)  # while it starts
        assert worker.opened().name == "onnxruntime"
        os.kill(worker.pid, signal.SIGINT)
        assert len(worker.take(1, 2)) == 2
    assert capfd.readouterr().err == ""
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_a_process_that_dies_is_an_error_with_its_code(
    request_of: MakeRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    with WorkerProcess(request_of(batches=())) as worker:
        worker.opened()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(GpusqError, match="the worker process ended with code -9 and without an answer"):
            worker.take(1, 1)


def test_a_pair_has_both_sides_of_every_batch_in_either_order(request_of: MakeRequest) -> None:
    base, head = request_of(), request_of("Exp")
    taken = take_pairs(base, head, (0, 1), warmup=1, length=Length(None, 4))
    assert len(taken) == 2
    for pair in taken:
        assert pair.turns == 4
        assert set(pair.samples) == {1, 4}
        walls = [side.wall for sides in pair.samples.values() for side in sides]
        assert {len(wall) for wall in walls} == {4 * TURN}
        assert pair.seconds > np.sum(walls) / 1000
        assert all(sides.has_cpu for sides in pair.samples.values())
        assert pair.core is None or pair.core in os.sched_getaffinity(0)


@pytest.fixture
def waiting() -> Iterator[tuple[int, int]]:
    """Two processes that wait."""
    wait = [sys.executable, "-c", "input()"]
    with subprocess.Popen(wait, stdin=subprocess.PIPE) as one, subprocess.Popen(wait, stdin=subprocess.PIPE) as other:
        try:
            yield one.pid, other.pid
        finally:
            one.kill()
            other.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a process on a core by its number")
def test_processes_share_the_core_of_the_first_and_nobody_else_is_kept_there(waiting: tuple[int, int]) -> None:
    ours = os.sched_getaffinity(0)
    last = max(ours)
    os.sched_setaffinity(waiting[0], {last})
    core = share_core(waiting)
    if core is None:
        pytest.skip("this sandbox doesn't tell or allow it")
    assert core == last
    assert [os.sched_getaffinity(process) for process in waiting] == [{last}, {last}]
    assert os.sched_getaffinity(0) == ours


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a process on a core by its number")
def test_where_one_is_gone_none_is_kept_on_a_core(waiting: tuple[int, int]) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    before = os.sched_getaffinity(waiting[0])
    assert share_core([waiting[0], gone.pid]) is None
    assert os.sched_getaffinity(waiting[0]) == before
    assert share_core([gone.pid]) is None


def test_only_one_thread_on_a_cpu_has_the_second_clock(request_of: MakeRequest) -> None:
    assert has_cpu_clock("onnxruntime", 1)
    assert not has_cpu_clock("onnxruntime", None)
    assert not has_cpu_clock("onnxruntime", 2)
    assert not has_cpu_clock("tensorrt", None)
    reply = served(request_of(threads=2), TakeRequest(batch=1, count=2))[1]
    assert (len(reply.samples_ms or ()), reply.cpu_ms) == (2, ())


def test_cpu_time_leaves_out_waiting_for_a_core_and_keeps_waiting_of_ones_own() -> None:
    def compute() -> float:
        start = time.perf_counter()
        sum(range(20_000))
        # As if the scheduler had taken the core away for a second.
        return 1000 * (time.perf_counter() - start) + 1000

    def sleep() -> float:
        time.sleep(0.002)
        return 2.0

    # A page fault or another thread of this process makes it wait of its own accord now and then: that is kept whole.
    taken = list(zip(*take_samples(compute, 50, cpu_clock=True), strict=True))
    assert all(cpu == wall or cpu < wall - 500 for wall, cpu in taken)
    assert any(cpu < wall - 500 for wall, cpu in taken)
    assert take_samples(sleep, 2, cpu_clock=True) == Taken((2.0, 2.0), (2.0, 2.0))
    assert take_samples(sleep, 2, cpu_clock=False) == Taken((2.0, 2.0))


@pytest.mark.parametrize(
    ("slowest", "turns"),
    # 1.5 s hold 150 inferences of 10 ms: two sides of four (one doesn't count) are 8 a turn.
    [(10.0, 18), (0.1, 20), (500.0, 2)],
)
def test_turns_fit_into_the_time_and_are_even(slowest: float, turns: int) -> None:
    assert turns_within(1.5, slowest, 20) == turns


def test_pairs_start_together_where_a_waiting_process_uses_no_core(request_of: MakeRequest) -> None:
    assert pairs_at_once(request_of()) == 4
    assert pairs_at_once(request_of(threads=None)) == pairs_at_once(request_of(runtime="tensorrt")) == 1


def test_a_pair_is_worth_its_start() -> None:
    assert Span(1.0, 1.0).after(0.6) == 1.0
    assert Span(3.0, 1.0).after(12.0) == 12.0


def test_a_pair_is_compared_turn_by_turn() -> None:
    # Both sides are three times as slow in the second and fourth turn; head is a tenth slower throughout.
    base = [10.0, 10.0, 50.0, 30.0, 30.0, 31.0, 10.0, 9.0, 10.0, 30.0, 30.0, 30.0]
    head = [11.0, 11.0, 11.0, 33.0, 33.0, 90.0, 11.0, 11.0, 12.0, 33.0, 33.0, 33.0]
    assert log_ratio(base, head, 3) == pytest.approx(np.log(1.1))
    assert log_ratio(head, base, 3) == pytest.approx(-np.log(1.1))


def test_what_comes_of_the_order_of_turns_drops_out_of_a_pair() -> None:
    # Whoever runs after the other side is slower by a fifth: base in the first turn of A B B A is the one that isn't.
    after_itself, after_other = 10.0, 12.0
    base = [after_itself, after_other] * 3
    head = [1.04 * after_other, 1.04 * after_itself] * 3
    assert log_ratio(base, head, 1) == pytest.approx(np.log(1.04))
