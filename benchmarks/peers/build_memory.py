"""How much memory does gpusq-build take for a large model, and in which of its steps? Peak resident memory, measured.

A checkpoint with random weights is written by another process; then the real command runs, and its resident memory is
read from /proc every tenth of a second, anonymous and mapped pages apart. A step is what the command said last.

    python benchmarks/peers/build_memory.py --json benchmarks/results/build_memory.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

_ARCH = "vit_giant_patch14_dinov2"
_LIMIT = 2.5
_WRITE = """
import sys, timm, torch
torch.manual_seed(0)
model = timm.create_model(sys.argv[2], pretrained=False, img_size=int(sys.argv[3]), num_classes=0)
torch.save(model.state_dict(), sys.argv[1])
print(sum(tensor.numel() for tensor in model.state_dict().values()))
"""


def main() -> None:
    """Write the checkpoint, build it, print the peak of each step; exit 1 where the whole is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default=_ARCH, help="a timm model")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--json", type=Path)
    parser.add_argument("options", nargs="*", default=["--fp16"], help="for gpusq-build, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.pt"
        command = [sys.executable, "-c", _WRITE, str(model), given.arch, str(given.size)]
        weights = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        arguments = ["--arch", f"timm:{given.arch}", "--arch-arg", f"img_size={given.size}"]
        arguments += ["--arch-arg", "num_classes=0", *(given.options or ["--fp16"])]
        measured = _measured([str(model), *arguments, "--out", str(Path(folder) / "out")])
        files = {path.name: path.stat().st_size for path in sorted((Path(folder) / "out").rglob("*")) if path.is_file()}
    result: dict[str, Any] = {
        "what": f"peak resident memory of gpusq-build {' '.join(['MODEL', *arguments])}",
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "cores": os.cpu_count(),
        "weights": weights,
        "fp32_bytes": 4 * weights,
        "times_the_fp32_weights": measured["peak_bytes"] / (4 * weights),
        "files": files,
        **measured,
    }
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")
    for step in result["steps"]:
        held, mapped = step["peak_bytes"] / 1e9, step["mapped_bytes"] / 1e9
        print(f"{held:6.2f} GB ({mapped:5.2f} mapped) {step['seconds']:6.1f} s  {step['step']}")
    print(f"peak {result['peak_bytes'] / 1e9:.2f} GB, {result['times_the_fp32_weights']:.2f} x the FP32 weights")
    sys.exit(0 if result["times_the_fp32_weights"] <= _LIMIT else 1)


def _measured(arguments: list[str]) -> dict[str, Any]:
    """Run the command; peaks by step, and the kernel's own high-water mark of the whole process."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "gpusq_deploy", "build", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    steps: list[dict[str, Any]] = [
        {"step": "starting", "peak_bytes": 0, "mapped_bytes": 0, "seconds": 0.0, "from": start}
    ]
    watcher = threading.Thread(target=_watch, args=(process.pid, steps), daemon=True)
    watcher.start()
    for line in process.stderr or ():
        print(line, end="", file=sys.stderr)
        now = time.monotonic()
        steps[-1]["seconds"] = now - steps[-1]["from"]
        steps.append({"step": line.strip()[:100], "peak_bytes": 0, "mapped_bytes": 0, "seconds": 0.0, "from": now})
    _, status, usage = os.wait4(process.pid, 0)
    steps[-1]["seconds"] = time.monotonic() - steps[-1]["from"]
    if status:
        sys.exit(f"gpusq-build failed with status {os.waitstatus_to_exitcode(status)}")
    for step in steps:
        del step["from"]
    return {"peak_bytes": usage.ru_maxrss * 1024, "seconds": time.monotonic() - start, "steps": steps}


def _watch(process: int, steps: list[dict[str, Any]]) -> None:
    path = Path(f"/proc/{process}/status")
    while True:
        try:
            lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
            resident, mapped = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "RssFile"))
        except (OSError, KeyError, ValueError):
            return
        step = steps[-1]
        if resident > step["peak_bytes"]:
            step["peak_bytes"], step["mapped_bytes"] = resident, mapped
        time.sleep(0.1)


if __name__ == "__main__":
    main()
