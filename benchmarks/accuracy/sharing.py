"""One evaluation by several processes: each runs its share of the batches, and every one hears all predictions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from gpusq_deploy.artifacts import Value
from gpusq_deploy.calibration import Ranks, ranks_from_environment
from gpusq_deploy.errors import GpusqError


class _Share(msgspec.Struct):
    """What one process found: predictions by index for each model, and why images couldn't be read."""

    records: list[dict[int, msgspec.Raw]]
    skipped: dict[int, str]


def evaluating_ranks(resume: Path | None) -> Ranks:
    """Which process this is, as torchrun says; torch computes on its own GPU, where there are several.

    Raises:
        GpusqError: Several processes would append to one file of predictions.
    """
    ranks = ranks_from_environment(os.environ)
    if ranks.world == 1:
        return ranks
    if resume is not None:
        raise GpusqError(
            f"{ranks.world} processes can't append to one file of predictions",
            place="--resume",
            hint="leave it out, or run gpusq-eval without torchrun",
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return ranks


def gathered(
    ranks: Ranks, records: Sequence[dict[int, Any]], skipped: dict[int, str], kinds: Sequence[type[Value]]
) -> list[dict[int, Any]]:
    """Every process's records of each model, by index; `skipped` grows by what the others couldn't read.

    Raises:
        GpusqError: The others can't be reached.
    """
    if ranks.world == 1:
        return list(records)
    own = msgspec.json.encode({"records": records, "skipped": skipped})
    shares = [msgspec.json.decode(part, type=_Share) for part in ranks.gather(own)]
    for share in shares:
        skipped.update({index: why for index, why in share.skipped.items() if index not in skipped})
    return [
        {
            index: msgspec.json.decode(record, type=kind)
            for share in shares
            for index, record in share.records[place].items()
        }
        for place, kind in enumerate(kinds)
    ]
