"""The state of a fully sharded training in a run's folder: each process keeps its part."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from gpusq_deploy.sparsity.training.resume import SHARDS, ResumeFolder, StageKeeper, unreadable
from gpusq_deploy.sparsity.training.sharded_state import Outline, load_parts, save_parts
from gpusq_deploy.sparsity.training.state import Keeper


def keeper_of(folder: ResumeFolder, stage: str, *, fsdp: bool) -> Keeper:
    """Who keeps the state of one stage."""
    return ShardedKeeper(folder, stage) if fsdp else StageKeeper(folder, stage)


class ShardedKeeper(StageKeeper):
    """Keeps tensors in two folders in turn; the part `training`, replaced at once, says which is the latest.

    All processes call it together, and see one file system.
    """

    _latest: str | None = None

    def load(self) -> dict[str, Any] | None:
        """The latest state of this stage, sharded over the present processes, however many kept it."""
        content = self._folder.read("training")
        if content is None:
            return None
        self._latest = str(content["folder"])
        if content["stage"] != self._stage:
            return None
        place = self._folder.place / self._latest
        try:
            return load_parts(place, Outline(content["state"], content["sharded"]), self._folder.processes)
        except Exception as error:  # whatever torch's reader makes of a damaged file
            raise unreadable(place, error) from error

    def due(self, *, epoch_ended: bool) -> bool:
        """As the first process finds."""
        return self._folder.processes.from_first(super().due(epoch_ended=epoch_ended))

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep it beside the one before, then in place of it."""
        before, processes = self._latest, self._folder.processes
        self._latest = next(name for name in SHARDS if name != before)
        self._folder.clear(self._latest)
        processes.wait()
        place = self._folder.place / self._latest
        with self._folder.writing(place):
            outline = save_parts(place, state)
        self._folder.write("training", {"stage": self._stage, "folder": self._latest, **outline._asdict()})
        if before is not None:
            self._folder.clear(before)
        self._saved, self._steps = time.monotonic(), 0
