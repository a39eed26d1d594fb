"""What a Jetson says of its power: nvpmodel's mode, tegrastats' rails, and whether jetson_clocks locked the GPU.

Formats: `nvpmodel -q` prints `NV Power Mode: MAXN` and the mode's number. tegrastats prints one line for each interval,
in which a rail is `VDD_IN 4654mW/4654mW`, and before JetPack 5 `VDD_IN 2532/2698`: now and on average, in milliwatts
(https://docs.nvidia.com/jetson/archives/l4t-archived/l4t-325/, Appendix: Tegra Stats). `jetson_clocks --show` needs
root, so what it would show of the GPU is read from the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpusq_deploy.benchmarks.machine.asking import ROOT, Ask, ask, first_line, number_in, text_of

# By the device tree's names of integrated GPUs, Xavier to Thor.
_GPUS = ("gv11b", "gp10b", "ga10b", "gpu")
_INPUTS = ("VDD_IN", "POM_5V_IN")
INTERVAL_MS = 100
TEGRASTATS = ("tegrastats", "--interval", str(INTERVAL_MS))
# Rails of unused pins (NC) say nothing.
_RAIL = re.compile(r"\b((?:VDD|VIN|POM|CPU|GPU|SOC|CV|SYS)\w*) (\d+)(?:mW)?/\d+(?:mW)?(?= |$)")


def is_jetson(root: Path = ROOT) -> bool:
    """True of a board with NVIDIA's own Linux."""
    return (root / "etc/nv_tegra_release").exists()


def power_mode(run: Ask = ask) -> str | None:
    """The power mode's name, such as MAXN or 15W; None where nvpmodel doesn't tell."""
    found = re.search(r"NV Power Mode:\s*(\S+)", run(["nvpmodel", "-q"]) or "")
    return None if found is None else found[1]


def rails(read: Callable[[Sequence[str]], str | None] = first_line) -> dict[str, int]:
    """Milliwatts by rail, now; empty where tegrastats doesn't tell."""
    return rails_in(read(TEGRASTATS) or "")


def rails_in(line: str) -> dict[str, int]:
    """Milliwatts by rail at the moment of one of tegrastats' lines; its averages since it was started are left out."""
    return {name: int(now) for name, now in _RAIL.findall(line)}


def total_mw(found: Mapping[str, int]) -> int | None:
    """What the module draws: its input's rail where it has one, else all rails together; None without rails."""
    inputs = [found[name] for name in _INPUTS if name in found]
    if inputs:
        return inputs[0]
    return sum(found.values()) if found else None


def gpu_clocks_locked(root: Path = ROOT) -> bool | None:
    """Whether the GPU's lowest and highest allowed frequency are the same; None where the kernel has no such GPU."""
    folder = _gpu(root)
    limits = [] if folder is None else [text_of(folder / name) for name in ("min_freq", "max_freq")]
    return None if None in limits or not limits else limits[0] == limits[1]


def gpu_mhz(root: Path = ROOT) -> float | None:
    """The GPU's frequency now; None where the kernel has no such GPU."""
    folder = _gpu(root)
    hertz = None if folder is None else number_in(text_of(folder / "cur_freq"))
    return None if hertz is None else hertz / 1e6


def _gpu(root: Path) -> Path | None:
    for folder in sorted(root.glob("sys/class/devfreq/*")):
        if (text_of(folder / "device/of_node/name") or "").strip("\0\n ") in _GPUS:
            return folder
    return None
