"""The GPU kit on the GPU's machine: collects parts, joins, installs into a folder of its own, and runs the suite.

    sh run.sh --add DIR     take the parts in DIR into the kit's folder; once for each time that some arrive
    sh run.sh --run OUT     when all are there: check, install, run; OUT gets the results
    sh run.sh --run OUT --pretend      the same without a GPU: a report that says what it would have run

Needs Python's standard library, pip and tar, and no network. The kit's folder is --kit, by default /tmp/gpusq-kit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

_BESIDE = ("run.sh", "start.py", "manifest.json")
_MIB = 1 << 20


def main() -> None:
    """Entry point: what the user can mend is one sentence, and ends with 5."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, default=Path("/tmp/gpusq-kit"))
    parser.add_argument("--add", type=Path, metavar="DIR")
    parser.add_argument("--run", type=Path, metavar="OUT")
    parser.add_argument("--pretend", action="store_true", help="hide the GPU")
    parser.add_argument("--budget", type=float, default=420.0, help="seconds for the suite itself")
    asked, more = parser.parse_known_args()
    if asked.add is None and asked.run is None:
        parser.error("--add DIR or --run OUT")
    try:
        if asked.add is not None:
            add(asked.add, asked.kit)
            _warm()
        if asked.run is not None:
            install(asked.kit)
            sys.exit(run(asked.kit, asked.run, ["--budget", str(asked.budget), *more], pretend=asked.pretend))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(5)


def add(source: Path, kit: Path) -> None:
    """Copy what is there of a kit, each part only if it is whole.

    Raises:
        ValueError: A part is damaged, or of another kit than what is there.
    """
    kit.mkdir(parents=True, exist_ok=True)
    wanted, theirs = source / "manifest.json", kit / "manifest.json"
    if theirs.exists() and theirs.read_bytes() != wanted.read_bytes():
        raise ValueError(f"{kit} holds parts of another kit: remove it, or give --kit another folder")
    for name in _BESIDE:
        if source.resolve() != kit.resolve():
            shutil.copy2(source / name, kit / name)
    for name, digest in _parts(kit).items():
        if (source / name).exists() and not (kit / name).exists():
            shutil.copy2(source / name, kit / f"{name}.new")
            if _digest(kit / f"{name}.new") != digest:
                raise ValueError(f"{source / name} is damaged: copy it again")
            (kit / f"{name}.new").rename(kit / name)
    missing = _missing(kit)
    print(f"{kit}: " + (f"still missing {', '.join(missing)}" if missing else "every part is here"))


def _warm() -> None:
    """Read what the suite imports from a cold disk meanwhile, in a process that outlives this one."""
    words = [sys.executable, "-c", "import onnxruntime, torch; torch.cuda.is_available()"]
    nowhere = subprocess.DEVNULL
    subprocess.Popen(words, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)


def install(kit: Path) -> None:
    """Join, unpack and install, once.

    Raises:
        ValueError: A part is missing.
    """
    if (kit / "installed").exists():
        return
    start, missing = time.monotonic(), _missing(kit)
    if missing:
        raise ValueError(f"{kit} lacks {', '.join(missing)}: run.sh --add takes them")
    for name in ("payload", "site"):
        shutil.rmtree(kit / name, ignore_errors=True)
    joined = kit / "payload.tar"
    with joined.open("wb") as whole:
        for name in _parts(kit):
            with (kit / name).open("rb") as part:
                shutil.copyfileobj(part, whole, _MIB)
    # Made by the kit's own script, and checked by its digests.
    subprocess.run(["tar", "-xf", str(joined), "-C", str(kit), "--no-same-owner"], check=True)
    joined.unlink()
    payload, site = kit / "payload", kit / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--root-user-action", "ignore", "--target", str(site)]
    subprocess.run([*command, *(str(path) for path in sorted((payload / "wheels").glob("*.whl")))], check=True)
    shutil.copytree(payload / "suite", site, dirs_exist_ok=True)
    (kit / "installed").touch()
    print(f"installed into {site} in {time.monotonic() - start:.0f} s", flush=True)


def run(kit: Path, out: Path, words: list[str], *, pretend: bool) -> int:
    """Run the suite; what it prints goes to OUT/log.txt too. Returns its exit status."""
    out.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ, PYTHONPATH=str(kit / "site"), PYTHONUNBUFFERED="1")
    if pretend:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "gpusq_deploy.benchmarks.gpu.suite", "--kit", str(kit / "payload")]
    command += ["--out", str(out), *words]
    with (out / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None, "a pipe was asked for"
        for line in process.stdout:
            log.write(line)
            log.flush()
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
        return process.wait()


def _parts(kit: Path) -> dict[str, str]:
    """Digests by the parts' names, in order."""
    parts: dict[str, str] = json.loads((kit / "manifest.json").read_text())["parts"]
    return parts


def _missing(kit: Path) -> list[str]:
    return [name for name in _parts(kit) if not (kit / name).exists()]


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_MIB):
            found.update(block)
    return found.hexdigest()


if __name__ == "__main__":
    main()
