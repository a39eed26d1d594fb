"""From what the GPU suite found to what the project says: the raw file, docs/gpu.md, and the targets' `unknowns`.

    python -m gpusq_deploy.benchmarks.gpu.facts gpu.json

Keeps the file as benchmarks/results/gpu/DATE-GPU.json, the kernels of each engine that ran beside it, as
`gpusq-inspect BUNDLE --kernels` takes them, writes its tables into docs/gpu.md, and the sentences of `sentences_after`
into the file of each target of that compute capability. Read the difference before you commit it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from gpusq_deploy.artifacts.base import json_from_value, read_value, write_whole
from gpusq_deploy.benchmarks.gpu.report import markdown_from_report
from gpusq_deploy.benchmarks.gpu.values import Finding, GpuReport
from gpusq_deploy.benchmarks.markdown import with_part
from gpusq_deploy.engines.targets import Target, load_targets
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import counted

ROOT = Path(__file__).resolve().parents[2]
_BEGIN, _END = "<!-- gpu: made by benchmarks/gpu/facts.py -->", "<!-- gpu: end -->"


def main() -> None:
    """Entry point: what the user can mend is said without a traceback, and ends with 5."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    try:
        for path in keep(read_value(parser.parse_args().report, GpuReport), ROOT):
            print(path)
    except GpusqError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def keep(report: GpuReport, root: Path) -> list[Path]:
    """Write all of them in a repository; the files that were written.

    Raises:
        GpusqError: No GPU was there, so it holds no fact.
    """
    gpu = report.environment.gpu
    if report.pretended or gpu is None:
        raise GpusqError("the suite had no GPU: nothing in this report was measured", hint="run it where a GPU answers")
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu.removeprefix("NVIDIA ")).strip("-")
    raw = root / "benchmarks" / "results" / "gpu" / f"{report.created[:10]}-{name}.json"
    raw.parent.mkdir(parents=True, exist_ok=True)
    write_whole(raw, json_from_value(report))
    docs = root / "docs" / "gpu.md"
    write_whole(docs, with_tables(docs.read_text(), report).encode())
    written = [raw, docs]
    for name, text in kernel_files(report).items():
        written.append(raw.with_suffix("") / name)
        written[-1].parent.mkdir(exist_ok=True)
        write_whole(written[-1], text.encode())
    for target in load_targets():
        if target.compute_capability == report.compute_capability:
            file = root / "engines" / "targets" / f"{target.name}.toml"
            write_whole(file, with_unknowns(file.read_text(), sentences_after(target, report)).encode())
            written.append(file)
    return written


def kernel_files(report: GpuReport) -> dict[str, str]:
    """The names of one inference's kernels, one a line, of each model at the first batch that ran; by file name."""
    files: dict[str, str] = {}
    for one in report.of("models"):
        if one.right and one.kernels:
            name = re.sub(r"[^A-Za-z0-9]+", "-", f"{one.name} {one.facts.get('way', '')}".replace(":", ""))
            files.setdefault(f"{name}.txt", "\n".join(one.kernels) + "\n")
    return files


def with_tables(text: str, report: GpuReport) -> str:
    """A document with the report's tables between its marks, each heading a level deeper."""
    tables = re.sub(r"^#", "##", markdown_from_report(report), flags=re.MULTILINE)
    found = with_part(text, _BEGIN, _END, f"\n\n{tables}\n")
    if found is None:
        raise GpusqError(f"the document lacks the marks {_BEGIN} and {_END}", place="docs/gpu.md")
    return found


def with_unknowns(toml: str, sentences: tuple[str, ...]) -> str:
    """A target's file with other `unknowns`."""
    # JSON's strings are TOML's basic strings.
    block = "unknowns = [\n" + "".join(f"  {json.dumps(line, ensure_ascii=False)},\n" for line in sentences) + "]\n"
    return re.sub(r"^unknowns = \[\n.*?^\]\n", lambda _found: block, toml, count=1, flags=re.MULTILINE | re.DOTALL)


def sentences_after(target: Target, report: GpuReport) -> tuple[str, ...]:
    """A target's unknowns, each that the report answers replaced by what was seen; the others stay."""
    found: dict[str, None] = {}
    for unknown in target.unknowns:
        answer = next((say(report, unknown) for words, say in _ANSWERS.items() if words in unknown), None)
        found[answer or unknown] = None
    return tuple(found)


def _run(report: GpuReport, _unknown: str) -> str | None:
    """Whether engines ran and were right; None where nothing ran."""
    right = [one for one in report.of("models") if one.right]
    if not right:
        return None
    least = min(decibels for one in right if (decibels := one.number("sqnr_db")) is not None)
    ways = " and ".join(way.name for way in report.ways.ways)
    what = f"{counted(len(right), 'engine run')} of plans built by {ways} agreed with ONNX Runtime to {least:.0f} dB"
    return f"{_seen(report)}: {what} or better."


def _sparse(report: GpuReport, _unknown: str) -> str | None:
    """How many 2:4 products ran on kernels whose names say so; None where no name was seen."""
    looked = [one for one in report.of("products") if " 2:4 " in one.name and one.kernels]
    if not looked:
        return None
    sparse = sum(bool(one.sparse_kernels) for one in looked)
    return f"{_seen(report)}: {sparse} of {len(looked)} products with 2:4 weights ran on a kernel with a sparse name."


def _other_capability(report: GpuReport, unknown: str) -> str | None:
    """Whether a plan for the capability that it names runs here; None where that wasn't asked."""
    named = re.search(r"(SM\d+) plans run on ", unknown)
    name = f"plan from elsewhere, tensorrt-rtx {named.group(1) if named else ''}"
    answer: Finding | None = next((one for one in reversed(report.of("possible")) if one.name == name), None)
    if answer is None:
        return None
    runs = "runs" if answer.right else f"doesn't run: {' '.join(answer.why_not.split())[:200]}"
    return f"{_seen(report)}: a {name.removeprefix('plan from elsewhere, ')} plan, built without the GPU, {runs}."


def _seen(report: GpuReport) -> str:
    return f"Seen on {report.environment.gpu}, {report.created[:10]}"


# Words of the unknown sentences, and what answers them.
_ANSWERS: Mapping[str, Callable[[GpuReport, str], str | None]] = {
    " plans run on ": _other_capability,
    "on sparse tensor cores": _sparse,
    "run by the authors": _run,
}


if __name__ == "__main__":
    main()
