"""What a compression keeps beside its trainings: where they begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from gpusq_deploy.artifacts import Permuted, builtins_from_value
from gpusq_deploy.sparsity.pruning.magnitude import Masks
from gpusq_deploy.sparsity.training.distributed import Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Before the first training: teacher, pruned student and masks, what was permuted, and what was said."""

    teacher: torch.nn.Module
    student: torch.nn.Module
    masks: Masks
    permuted: tuple[Permuted, ...]
    notes: tuple[str, ...]

    def kept(self) -> dict[str, Any]:
        """Plain values and tensors; the teacher's only where it isn't the checkpoint's any more."""
        return {
            "teacher": dict(self.teacher.state_dict()) if self.permuted else None,
            "student": dict(self.student.state_dict()),
            "masks": dict(self.masks),
            "permuted": [builtins_from_value(item) for item in self.permuted],
            "notes": list(self.notes),
        }

    def same_everywhere(self, processes: Ranks) -> None:
        """Make it the first process's: elsewhere another kernel may have rounded, and chosen, otherwise."""
        processes.same([*self.teacher.state_dict().values(), *self.student.state_dict().values(), *self.masks.values()])


def start_from(kept: Mapping[str, Any], teacher: torch.nn.Module, student: torch.nn.Module) -> Start:
    """What `Start.kept` kept, in these two modules."""
    if kept["teacher"] is not None:
        teacher.load_state_dict(kept["teacher"])
    student.load_state_dict(kept["student"])
    device = next(student.parameters()).device
    return Start(
        teacher=teacher,
        student=student,
        masks={layer: mask.to(device) for layer, mask in kept["masks"].items()},
        permuted=msgspec.convert(kept["permuted"], type=tuple[Permuted, ...]),
        notes=tuple(kept["notes"]),
    )
