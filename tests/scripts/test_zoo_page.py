"""The tables of docs/zoo.md are those of the kept results, and each row was made as its model's card says."""

from __future__ import annotations

import json
import shlex

from gpusq_deploy.benchmarks.peers.zoo_cards import CARDS, VARIANTS
from gpusq_deploy.benchmarks.peers.zoo_page import PAGE, RESULTS, tables


def test_the_page_holds_the_tables() -> None:
    assert tables() in PAGE.read_text(encoding="utf-8")


def test_each_row_was_made_as_its_card_says() -> None:
    rows = {row["key"]: row for row in json.loads(RESULTS.read_text("utf-8"))["models"]}
    assert set(rows) == {card.key for card in CARDS}
    for card in CARDS:
        row = rows[card.key]
        made = {f"gpusq-{shlex.join(words)}" for words in card.commands().values()}
        assert {command for command in row["commands"] if "gpusq-eval" not in command} <= made
        assert (row["package"], row["licence"], row["data"]) == (
            card.package.requirement,
            card.package.licence,
            card.data,
        )
        for scores in (*row["scores"].values(), row["bytes"]):
            assert set(scores) == {"float", *VARIANTS}
