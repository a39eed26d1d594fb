"""Energy: the integral, and a real program that is listened to."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx.parser
import pytest

from gpusq_deploy.artifacts import EnergySample, Runs, Series
from gpusq_deploy.benchmarks.comparable import obstacles
from gpusq_deploy.benchmarks.energy import EnergyRequest, take_energy
from gpusq_deploy.benchmarks.machine import power
from gpusq_deploy.benchmarks.machine.power import PowerSample, PowerSampler, PowerSource, joules
from gpusq_deploy.benchmarks.report import text_from_runs
from gpusq_deploy.benchmarks.worker import WorkerRequest
from gpusq_deploy.benchmarks.worker_process import WorkerProcess
from gpusq_deploy.errors import GpusqError

# importorskip hands back Any: scipy ships no types.
integrate: Any = pytest.importorskip("scipy.integrate")
ENDLESS = "import time\nwhile True:\n    print({line!r}, flush=True)\n    time.sleep(0.01)"


def source(line: str = "x VDD_IN 5000mW/4000mW VDD_SOC 1000mW/1000mW") -> PowerSource:
    words = (sys.executable, "-c", ENDLESS.format(line=line))
    return PowerSource(words, power.watts_of_rails, "the whole module, by a test")


def test_the_integral_is_scipys_where_samples_lie_at_its_ends() -> None:
    rng = np.random.default_rng(0)
    moments = np.sort(rng.uniform(10, 20, 50))
    watts = rng.uniform(5, 50, 50)
    samples = [PowerSample(*pair) for pair in zip(moments.tolist(), watts.tolist(), strict=True)]
    found = joules(samples, samples[0].moment, samples[-1].moment)
    assert found == pytest.approx(float(integrate.trapezoid(watts, moments)))


def test_samples_outside_do_not_count_and_the_ends_are_held() -> None:
    samples = [PowerSample(float(moment), 1000.0 if moment < 1 or moment > 9 else 10.0) for moment in range(11)]
    assert joules(samples, 0.5, 9.5) == pytest.approx(90)
    with pytest.raises(GpusqError, match=r"the power was told 4 times in 3.5 s, and 5 are needed"):
        joules(samples, 0.5, 4.0)


def test_a_program_is_listened_to_and_ended() -> None:
    with PowerSampler(source()) as sampler:
        sampler.wait()
        time.sleep(0.1)
        samples = sampler.samples()
    assert {sample.watts for sample in samples} == {5.0}
    assert [sample.moment for sample in samples] == sorted(sample.moment for sample in samples)


@pytest.mark.parametrize("words", [("no-such-program",), ("true",)])
def test_a_program_that_tells_no_power_is_an_error(words: tuple[str, ...]) -> None:
    with (
        pytest.raises(GpusqError, match=r"cannot start no-such-program|true doesn't tell the power"),
        PowerSampler(source()._replace(words=words)) as sampler,
    ):
        sampler.wait()


def test_without_a_gpu_nobody_tells_the_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "find_bus", lambda: None)
    with pytest.raises(GpusqError, match="nothing here tells the power"):
        power.find_source(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.7")
    assert power.find_source(tmp_path).words == ("tegrastats", "--interval", "100")
    monkeypatch.setattr(power, "find_bus", lambda: "0000:65:00.0")
    found = power.find_source(tmp_path / "none")
    assert found.words[:3] == ("nvidia-smi", "-i", "0000:65:00.0")
    assert (found.watts("312.45"), found.watts("[N/A]")) == (312.45, None)


@pytest.mark.slow
def test_a_process_runs_again_for_its_energy(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> t (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }'
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    request = WorkerRequest(path=str(path), runtime="onnxruntime", reason="a test", batches=(2,), threads=1)
    with WorkerProcess(request) as worker:
        worker.opened()
        timed = Series(batch=2, repeat=3, warmup=1, samples_ms=worker.take(2, 20, warmup=5))
        # However fast the model, so many inferences are asked for that samples fall into their time.
        sample = take_energy(worker, msgspec.structs.replace(timed, samples_ms=(0.01,)), EnergyRequest(0.2, source()))
    assert (sample.batch, sample.repeat, sample.inferences) == (2, 3, 20_000)
    assert sample.joules == pytest.approx(5.0 * sample.seconds)


def test_energy_stands_in_the_table_and_keeps_files_apart(make_runs: Callable[[dict[int, Any]], Runs]) -> None:
    runs = make_runs({1: np.full((5, 10), 1.0)})
    energy = tuple(
        EnergySample(batch=1, repeat=repeat, inferences=100, seconds=2.0, joules=joule, source="the board, by a test")
        for repeat, joule in enumerate((20.0, 22.0, 21.0))
    )
    settings = msgspec.structs.replace(runs.settings, energy_seconds=2.0)
    spent = msgspec.structs.replace(runs, energy=energy, settings=settings)
    assert (
        "batch 1: 0.21 J an inference (0.2 to 0.22 in 3 processes), 10.5 W, idle power included: the board, by a test"
        in text_from_runs(spent)
    )
    assert obstacles(runs, spent) == ("seconds of energy: unknown or none in base, 2.0 in head",)
