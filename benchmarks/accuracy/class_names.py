"""Class folders that are called as the model's classes: then names decide, not the order of the folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gpusq_deploy.benchmarks.accuracy.tasks_and_data import Entries, Entry, OpenedData


@dataclass(frozen=True, slots=True)
class Renumbered:
    """Entries whose class i is the model's `labels[i]`."""

    entries: Entries
    labels: tuple[int, ...]

    @property
    def name(self) -> str:
        """See `Entries`."""
        return self.entries.name

    @property
    def labelled(self) -> bool:
        """See `Entries`."""
        return self.entries.labelled

    def __len__(self) -> int:
        return len(self.entries)

    def entry(self, index: int) -> Entry:
        """See `Entries`."""
        found = self.entries.entry(index)
        return Entry(found.image, self.labels[found.target])


def by_name(opened: OpenedData, names: Mapping[int, str]) -> OpenedData:
    """The data with the model's numbers, where it has every name of the data's classes once; else as it is.

    Args:
        opened: The data.
        names: The model's, by label. Case doesn't count, nor does `_` for a space.
    """
    labels: dict[str, list[int]] = {}
    for label, name in names.items():
        labels.setdefault(_plain(name), []).append(label)
    found = [labels.get(_plain(name), []) for name in opened.classes]
    if not found or any(len(each) != 1 for each in found):
        return opened
    return replace(opened, entries=Renumbered(opened.entries, tuple(label for (label,) in found)))


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").strip()
