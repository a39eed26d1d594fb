"""Which images each of several processes runs, and that all hear all."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.benchmarks.accuracy.predict import Loaded, Samples, predict
from gpusq_deploy.benchmarks.accuracy.sharing import gathered
from gpusq_deploy.benchmarks.accuracy.store import Store
from gpusq_deploy.calibration.distributed import Ranks
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.progress import SILENT


class Record(Value):
    share: float


class Entries:
    name = "points"

    def __len__(self) -> int:
        return 40

    def entry(self, index: int) -> int:
        return index


class Reader:
    def read(self, entry: int) -> Any:
        if entry == 7:
            raise GpusqError("damaged", place="7.png")
        return SimpleNamespace(pixels=np.full((1,), entry, np.float32), target=None)


def records(_module: object, images: Any, _targets: Sequence[object]) -> list[Record]:
    return [Record(share=float(value) / 3) for value in images[:, 0]]


def share_of(rank: int, world: int) -> tuple[dict[int, Any], Samples]:
    entries: Any = Entries()
    declared = Preprocessing(channels=1, height=1, width=1, mean=(0.0,), std=(1.0,), origin="test")
    subject: Any = SimpleNamespace(name="m", digest="d", runtime="r", preprocessing=declared)
    judge: Any = SimpleNamespace(record=Record, records=records)
    reader: Any = Reader()
    samples = Samples(entries=entries, indices=range(40), batch=6, ranks=Ranks(rank=rank, world=world))
    module: Any = None
    loaded = Loaded(subject=subject, module=module, judge=judge, reader=reader, classes=1)
    return predict(loaded, samples, Store(data="", known={}), SILENT), samples


@pytest.mark.parametrize("world", [2, 3])
def test_each_runs_its_own_batches_and_all_hear_all(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, whole = share_of(0, 1)
    shares = [share_of(rank, world) for rank in range(world)]
    assert set(shares[1][0]) <= {6, 8, 9, 10, 11, *range(12 + 6 * (world - 1), 40)}
    assert sum(len(found) for found, _ in shares) == len(alone) == 39
    parts = [msgspec.json.encode({"records": [found], "skipped": samples.skipped}) for found, samples in shares]

    def gather(self: Ranks, own: bytes) -> Sequence[bytes]:
        assert own == parts[self.rank]
        return parts

    monkeypatch.setattr(Ranks, "gather", gather)
    for rank, (found, samples) in enumerate(shares):
        assert gathered(Ranks(rank=rank, world=world), [found], samples.skipped, [Record]) == [alone]
        assert samples.skipped == whole.skipped == {7: "7.png: damaged"}
