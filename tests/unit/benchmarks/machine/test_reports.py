"""What nvidia-smi and a Jetson's programs print.

The first two lines of tegrastats were printed by an AGX Orin (L4T 36.4.7) and an Orin Nano, and published; the third is
made up in the form of NVIDIA's Tegra Stats appendix (docs.nvidia.com/jetson/archives/l4t-archived/l4t-325). Lines of
nvidia-smi are made up in the form of `--format=csv,noheader,nounits`, with `[N/A]` and `[Not Supported]` where a GPU
doesn't tell (man nvidia-smi, "Any unsupported data is indicated by a N/A").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gpusq_deploy.benchmarks.machine import jetson, nvidia_smi
from gpusq_deploy.benchmarks.machine.asking import ask, first_line, number_in
from gpusq_deploy.benchmarks.machine.reading import read_state

AGX_ORIN = (
    "10-05-2026 21:03:35 RAM 5137/62841MB (lfb 2x4MB) SWAP 0/31420MB (cached 0MB) CPU [1%@729,25%@729,1%@729,1%@729,"
    "2%@729,1%@729,0%@729,0%@729,2%@729,14%@729,1%@729,0%@729] GR3D_FREQ 0% cpu@52.875C soc2@48.656C soc0@49.062C "
    "tj@52.875C soc1@49.031C VDD_GPU_SOC 3178mW/3178mW VDD_CPU_CV 794mW/794mW VIN_SYS_5V0 4543mW/4543mW"
)
ORIN_NANO = (
    "09-17-2026 02:10:16 RAM 1483/7620MB (lfb 105x4MB) SWAP 253/12002MB (cached 2MB) CPU [0%@729,0%@729,0%@729,0%@729,"
    "0%@729,0%@729] GR3D_FREQ 62%@612 cpu@47.75C soc2@46.718C soc0@47.25C gpu@50C tj@50C soc1@48.093C "
    "VDD_IN 4541mW/4541mW VDD_CPU_GPU_CV 521mW/521mW VDD_SOC 1446mW/1473mW"
)
BEFORE_JETPACK_5 = "RAM 220/38955MB (lfb 847x4MB) EMC_FREQ 7%@102 GR3D_FREQ 0%@114 VDD_IN 2532/2698 VDD_CPU 228/240"

H100 = "00000000:65:00.0, 535.104.05, 1980, 2619, 45, 312.45, 700.00, Enabled, 0x0000000000000004"
A100 = "00000000:C1:00.0, 535.104.05, 1410, 1215, 61, 298.10, 300.00, Disabled, 0x0000000000000060"
TELLS_LITTLE = "00000000:00:00.0, 540.3.0, [N/A], [N/A], [N/A], [Not Supported], [N/A], [N/A], [N/A]"


def test_rails_are_milliwatts_now_and_not_on_average() -> None:
    assert jetson.rails_in(AGX_ORIN) == {"VDD_GPU_SOC": 3178, "VDD_CPU_CV": 794, "VIN_SYS_5V0": 4543}
    assert jetson.rails_in(ORIN_NANO) == {"VDD_IN": 4541, "VDD_CPU_GPU_CV": 521, "VDD_SOC": 1446}
    assert jetson.rails_in(BEFORE_JETPACK_5) == {"VDD_IN": 2532, "VDD_CPU": 228}
    assert jetson.rails_in("no such program") == {}


def test_the_whole_is_the_inputs_rail_or_all_rails_together() -> None:
    assert jetson.total_mw(jetson.rails_in(ORIN_NANO)) == 4541
    assert jetson.total_mw(jetson.rails_in(AGX_ORIN)) == 3178 + 794 + 4543
    assert jetson.total_mw({}) is None


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN"),
        ("NVPM VERB: Current mode: NV Power Mode: MODE_15W_6CORE\n2\n", "MODE_15W_6CORE"),
        ("", None),
        (None, None),
    ],
)
def test_the_power_mode_is_named(text: str | None, mode: str | None) -> None:
    def run(words: Sequence[str]) -> str | None:
        assert words == ["nvpmodel", "-q"]
        return text

    assert jetson.power_mode(run) == mode


def test_a_report_is_found_by_its_bus() -> None:
    def run(_words: Sequence[str]) -> str:
        return f"{H100}\n{A100}\n"

    found = nvidia_smi.read_gpu("0000:c1:00.0", run)
    assert found is not None
    assert (found.driver, found.sm_mhz, found.memory_mhz, found.temperature_c) == ("535.104.05", 1410, 1215, 61)
    assert (found.power_w, found.power_limit_w, found.persistence) == (298.1, 300, False)
    assert found.limits == ("software thermal slowdown", "hardware thermal slowdown")
    assert nvidia_smi.read_gpu("0000:01:00.0", run) is None
    assert nvidia_smi.read_gpu(None, run) is None, "which of the two isn't said"


def test_what_a_gpu_does_not_tell_is_unknown_and_not_zero() -> None:
    (found,) = nvidia_smi.parse_gpus(TELLS_LITTLE)
    assert found.driver == "540.3.0"
    assert (found.sm_mhz, found.power_w, found.power_limit_w, found.persistence, found.limits) == (None,) * 4 + ((),)
    assert nvidia_smi.parse_gpus("NVIDIA-SMI has failed\n") == ()


def test_an_older_driver_is_asked_by_its_own_names() -> None:
    asked: list[str] = []

    def run(words: Sequence[str]) -> str | None:
        asked.append(words[1].rpartition(",")[2])
        return None if "event" in words[1] else H100

    found = nvidia_smi.read_gpu(None, run)
    assert found is not None
    assert found.limits == ("power cap",)
    assert asked == ["clocks_event_reasons.active", "clocks_throttle_reasons.active"]


@pytest.mark.parametrize(
    ("mask", "limits"),
    [
        ("0x0000000000000000", ()),
        ("0x0000000000000001", ()),  # idle
        ("0x0000000000000102", ()),  # clocks that a person set
        ("0x0000000000000088", ("hardware slowdown", "power brake")),
        ("[N/A]", ()),
    ],
)
def test_only_what_holds_clocks_down_is_a_limit(mask: str, limits: tuple[str, ...]) -> None:
    assert nvidia_smi.limits_of(mask) == limits


def test_a_program_that_is_missing_or_fails_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(["no-such-program"]) is None
    assert first_line(["no-such-program"]) is None
    assert ask(["false"]) is None
    assert ask(["echo", "1"]) == "1\n"
    assert first_line(["yes"]) == "y\n"
    monkeypatch.setattr("gpusq_deploy.benchmarks.machine.asking._SECONDS", 0.05)
    assert first_line(["sleep", "60"]) is None, "nobody waits for it"
    assert ask(["sleep", "60"]) is None
    assert (number_in("45 C"), number_in("-1.5"), number_in("[N/A]"), number_in(None)) == (45, -1.5, None, None)


def test_the_state_is_read_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpusq_deploy.benchmarks.machine.reading.find_bus", lambda: None)
    monkeypatch.setattr("gpusq_deploy.benchmarks.machine.reading.allowed_cores", lambda: [0, 2])
    gpu = "sys/class/devfreq/17000000.gpu"
    for name, text in {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1267200\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1\n",
        "sys/devices/system/cpu/cpu2/cpufreq/scaling_cur_freq": "1728000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "52875\n",
        "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "-256000\n",
        "proc/loadavg": "0.12 0.13 0.09 1/234 5678\n",
        f"{gpu}/device/of_node/name": "gpu\0",
        f"{gpu}/cur_freq": "1300500000\n",
        f"{gpu}/min_freq": "306000000\n",
        f"{gpu}/max_freq": "1300500000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    state = read_state(tmp_path)
    assert state.cpu_mhz == (1267.2, 1728.0)
    assert state.temperatures_c == {"cpu-thermal": 52.875}, "a sensor that is switched off says nothing"
    assert (state.load, state.gpu_sm_mhz, state.gpu_power_w, state.rails_mw) == (0.12, 1300.5, None, {})
    assert jetson.gpu_clocks_locked(tmp_path) is False
    (tmp_path / gpu / "min_freq").write_text("1300500000\n")
    assert jetson.gpu_clocks_locked(tmp_path) is True
    assert jetson.gpu_clocks_locked(tmp_path / "none") is None
