"""What adapters make of a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch

from gpusq_deploy.artifacts import SparsityRecord
from gpusq_deploy.frontend.checkpoint.adapters.quantizer_record import QuantizerRecord
from gpusq_deploy.frontend.checkpoint.adapters.refusal import ForeignFormatError


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A file's content in our terms.

    Attributes:
        state: Weights by name, as the model loads them.
        layout: The file's layout in words.
        ranges: amax of layers' inputs, by layer: |x| <= amax.
        origins: Who recorded each of them.
        sparsity: The layers that the file says were pruned.
        remarks: What was changed or left out on the way; all of it is said and kept in the manifest.
        producers: Who wrote the file, as far as it shows.
        unused: Of the remarks, those on what is in the file and isn't used.
        taken: The file's names that adapters took out of `state`: an architecture that has them keeps them.
        problem: Why the weights can't be read; whoever has no architecture with such names of its own raises it.
        quantizers: What else the producer recorded of its quantisers.
        unnamed: Tensors that the file has no name for.
    """

    state: Mapping[str, torch.Tensor]
    layout: str
    ranges: Mapping[str, float] = field(default_factory=dict[str, float])
    origins: Mapping[str, str] = field(default_factory=dict[str, str])
    sparsity: SparsityRecord | None = None
    remarks: tuple[str, ...] = ()
    producers: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    taken: frozenset[str] = frozenset()
    problem: ForeignFormatError | None = None
    quantizers: QuantizerRecord = field(default_factory=QuantizerRecord)
    unnamed: tuple[torch.Tensor, ...] = ()

    def without(self, names: Collection[str], producer: str, said: str) -> Reading:
        """Leave tensors of a producer out of the state, which is said."""
        return replace(
            self,
            state={name: tensor for name, tensor in self.state.items() if name not in names},
            remarks=(*self.remarks, said),
            unused=(*self.unused, said),
            producers=(*self.producers, producer),
        )
