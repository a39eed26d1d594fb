"""The error for files whose weights only their producer can turn into plain ones."""

from __future__ import annotations

from gpusq_deploy.errors import GpusqError


class ForeignFormatError(GpusqError):
    """The weights are of a form that is read by its producer alone.

    Args:
        what: What they are.
        place: The file and a tensor.
        hint: The producer's own conversion.
        producer: Who wrote them.
    """

    def __init__(self, what: str, *, place: str, hint: str, producer: str) -> None:
        super().__init__(what, place=place, hint=hint)
        self.producer = producer
