"""The tables of docs/predict.md, from benchmarks/results/prediction.json and prediction_paper.json.

python benchmarks/peers/prediction_page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpusq_deploy.benchmarks.peers.page import put_part
from gpusq_deploy.engines.prediction.devices import load_devices

_ROOT = Path(__file__).resolve().parents[2]
_RESULTS = _ROOT / "benchmarks" / "results"
_PAGE = _ROOT / "docs" / "predict.md"
_BEGIN, _END = "<!-- tables: made by benchmarks/peers/prediction_page.py -->", "<!-- tables: end -->"


def main() -> None:
    """Replace what stands between the two marks."""
    put_part(_PAGE, _BEGIN, _END, f"\n{tables()}\n")


def tables() -> str:
    """Everything between the two marks."""
    found = json.loads((_RESULTS / "prediction.json").read_text())
    paper = json.loads((_RESULTS / "prediction_paper.json").read_text())
    parts = (_errors(found), _constants(found), _devices(), _paper(paper), _sources(found), _points(found))
    return "\n\n".join("\n".join(part) for part in parts)


def _table(*headings: str) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"


def _errors(found: dict[str, Any]) -> Iterator[str]:
    yield "### Errors\n"
    yield "Median of |predicted / measured - 1|, percent: fitted with a point, without it, without its device.\n"
    yield from _table("of", "points", "fitted", "left out", "its device left out")
    total, errors = sum(row["points"] for row in found["by_precision"].values()), found["errors"]
    medians = [errors[name]["median"] for name in ("predicted", "left_out", "device_left_out")]
    yield f"| **all** | {total} | {' | '.join(f'**{value}**' for value in medians)} |"
    yield f"| 9 of 10 are below | {total} | {' | '.join(str(errors[name]['p90']) for name in errors)} |"
    for group in ("by_precision", "by_device", "by_source"):
        for name, row in found[group].items():
            yield f"| {name} | {row['points']} | {row['predicted']} | {row['left_out']} | {row['device_left_out']} |"
    yield "\nAfter one run on the device, which the fit hasn't seen:\n"
    yield from _table("run and asked have in common", "pairs", "median error, %", "9 of 10 are below, %")
    names = {
        "same_model": "model and type; another batch size",
        "same_precision": "type; another model or batch size",
        "other_precision": "model; another type",
        "any_run": "device and publication only",
    }
    for key, words in names.items():
        row = found["calibrated"][key]
        yield f"| {words} | {row['count']} | {row['median']} | {row['p90']} |"
    ratio = found["int8_over_fp16"]
    yield (
        f"\nINT8 over FP16 of one model and device, {ratio['count']} pairs, the device unseen: median error "
        f"{ratio['median']} %, 9 of 10 below {ratio['p90']} %."
    )


def _constants(found: dict[str, Any]) -> Iterator[str]:
    yield "### Constants\n"
    yield from _table("constant", "value")
    for name, value in found["constants"].items():
        yield f"| {name} | {value} |"


def _devices() -> Iterator[str]:
    yield "### Devices\n"
    yield from _table("name", "GPU", "SMs", "GHz", "FP16, TFLOPS", "INT8, TOPS", "GB/s", "L2, MB", "source")
    for each in load_devices():
        numbers = (each.sms, each.gigahertz, each.fp16_tflops, each.int8_tops, each.gigabytes_per_second)
        cells = (each.name, each.gpu, *(f"{number:g}" for number in (*numbers, each.l2_megabytes)), each.source)
        yield f"| {' | '.join(cells)} |"


def _paper(paper: dict[str, Any]) -> Iterator[str]:
    yield "### The paper's speed-ups\n"
    yield "Predicted: how many times faster INT4 with 2:4 is than each baseline.\n"
    yield from _table("device", "model", "", "paper", "over FP32", "over TF32", "over FP16", "over dense INT8")
    models = {"deit_tiny": "DeiT-T", "deit_small": "DeiT-S", "vit_base": "DeiT-B", "swin_base": "Swin-B 384"}
    for row in paper["rows"]:
        for way in ("latency", "throughput"):
            ratios = row[f"{way}_int4+2:4_over"]
            cells = [row["device"], models[row["model"]], way, f"{row['paper'][way]:.2f}"]
            cells += [f"{ratios[base]:.2f}" for base in ("fp32", "tf32", "fp16", "int8")]
            yield f"| {' | '.join(cells)} |"


def _sources(found: dict[str, Any]) -> Iterator[str]:
    yield "### Sources\n"
    yield from _table("source", "publication", "what was measured", "clocks")
    for name, source in found["sources"].items():
        yield f"| {name} | [{source['title']}]({source['address']}) | {source['what']} | {source['clocks']} |"


def _points(found: dict[str, Any]) -> Iterator[str]:
    yield "### Every reference point\n"
    yield "Milliseconds of the batch. Where nothing was left out, the point wasn't fitted.\n"
    yield from _table(
        "source",
        "device",
        "model",
        "pixels",
        "type",
        "batch",
        "measured",
        "predicted",
        "error, %",
        "left out, %",
        "device left out, %",
    )
    for row in found["points"]:
        model = row["model"] if row["patch"] in {"4", "16", "0"} else f"{row['model']}/{row['patch']}"
        cells = [row["source"], row["device"], model, row["resolution"], row["precision"], row["batch"]]
        cells += [f"{row['milliseconds']:g}", f"{row['predicted']:.3g}", _error(row, "predicted")]
        cells += [_error(row, "left_out"), _error(row, "device_left_out")]
        yield f"| {' | '.join(cells)} |"


def _error(row: dict[str, Any], key: str) -> str:
    return f"{100 * (row[key] / row['milliseconds'] - 1):+.0f}" if key in row else ""


if __name__ == "__main__":
    main()
