"""Makes the GPU kit: all that the GPU suite needs on a machine without an index, in parts that can be sent one by one.

    python -m gpusq_deploy.benchmarks.gpu.kit --out .gpu --python 3.12

Graphs that an earlier call made in --out are taken again; README.md in it says what to do on the GPU's machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tarfile
from pathlib import Path

from gpusq_deploy.artifacts.base import written_whole
from gpusq_deploy.benchmarks.gpu.graph_kit import MODELS, make_graphs, make_small
from gpusq_deploy.benchmarks.gpu.wheels import collect_wheels
from gpusq_deploy.errors import GpusqError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_BESIDE = ("run.sh", "start.py")
_PYTEST = """[pytest]
addopts = --import-mode=importlib
markers =
    gpu: needs an NVIDIA GPU
    slow: takes more than a second
"""


def main() -> None:
    """Entry point: what the user can mend is said without a traceback, and ends with 5."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".gpu"))
    parser.add_argument("--python", default="3.12", help="the machine's")
    parser.add_argument("--machine", type=Path, default=HERE / "machine-packages.txt", help="distributions it has")
    parser.add_argument("--mib", type=int, default=58, help="the most that a part may have")
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    asked = parser.parse_args()
    try:
        make_kit(asked.out, asked.python, asked.machine, asked.models, asked.mib)
    except GpusqError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def make_kit(out: Path, python: str, machine: Path, models: list[str], mib: int) -> None:
    """Everything, then the parts of it.

    Raises:
        GpusqError: A wheel can't be had, or the small model can't be built.
    """
    payload = out / "payload"
    for name in ("wheels", "suite", "tests"):
        shutil.rmtree(payload / name, ignore_errors=True)
    wheels = collect_wheels(ROOT, python, machine, payload / "wheels")
    make_small(payload / "small")
    kit = make_graphs(models, payload / "graphs")
    copy_suite(payload)
    parts = cut(payload, out, mib)
    for name in _BESIDE:
        shutil.copy2(HERE / name, out / name)
    (out / "README.md").write_text(readme(list(parts), python, len(kit.variants)))
    print(f"{out}: {len(parts)} parts, {len(wheels)} wheels, {len(kit.variants)} models in their precisions")
    for name, reason in kit.left_out.items():
        print(f"  without {name}: {reason}")


def cut(payload: Path, out: Path, mib: int) -> dict[str, str]:
    """Pack a folder and cut it into parts; their SHA-256 by their names, which manifest.json says too."""
    for old in out.glob("part-*"):
        old.unlink()
    digests: dict[str, str] = {}
    with written_whole(out / "payload.tar") as whole:
        with tarfile.open(whole, "w") as archive:
            archive.add(payload, "payload")
        with whole.open("rb") as stream:
            # Wheels are compressed already, and graphs have lost their weights.
            while piece := stream.read(mib << 20):
                name = f"part-{len(digests):02d}"
                (out / name).write_bytes(piece)
                digests[name] = hashlib.sha256(piece).hexdigest()
    (out / "payload.tar").unlink()
    (out / "manifest.json").write_text(json.dumps({"parts": digests}, indent=2) + "\n")
    return digests


def readme(parts: list[str], python: str, variants: int) -> str:
    """The exact calls, for whoever stands at the GPU's machine."""
    sends = "\n".join(
        f"    run.sh start.py manifest.json {part}".ljust(50)
        + "then:  sh run.sh --add ."
        + (" && sh /tmp/gpusq-kit/run.sh --run OUT" if part == parts[-1] else "")
        for part in parts
    )
    return f"""# GPU kit

For a machine with an NVIDIA GPU, its driver, Python {python} with pip, and no index. Nothing here reaches a network.

Send the parts in as many goes as you like; each go brings these files into one folder, and its call collects them:

{sends}

The last call takes nine minutes at most: it installs within one and measures for seven (`--budget SECONDS` gives it
less, `--steps possible models` only some). OUT gets eight files of a few MB at most:
gpu.json (everything, raw), report.md, log.txt, and a .jsonl for each step, which is written while it runs.

Without a GPU, or with --pretend, the same ends with a report that says for each step why it didn't run.
PYTHON=/path/to/python3 in the environment chooses the interpreter. {variants} models in their precisions are inside.
"""


def copy_suite(payload: Path) -> None:
    """The suite, which our wheel lacks, and the tests that need a GPU."""
    ignored = shutil.ignore_patterns("__pycache__")
    inside = payload / "suite" / "gpusq_deploy" / "benchmarks" / "gpu"
    shutil.copytree(HERE, inside, ignore=ignored)
    shutil.copytree(ROOT / "tests" / "gpu", payload / "tests" / "gpu", ignore=ignored)
    (payload / "tests" / "pytest.ini").write_text(_PYTEST)


if __name__ == "__main__":
    main()
