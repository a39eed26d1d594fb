"""loralib's low-rank adapters: `LAYER.lora_A` and `LAYER.lora_B` beside `LAYER.weight`.

loralib adds B A to the weight in eval mode and keeps A and B, so no file shows whether its weight holds them. Where B
is zero it makes no difference, and the weight is read.
"""

from __future__ import annotations

import re
from dataclasses import replace

from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.frontend.checkpoint.adapters.refusal import ForeignFormatError
from gpusq_deploy.text import some

PRODUCER = "loralib"
_FACTOR = re.compile(r".+\.lora_(?P<part>[AB])")


def is_loralib(name: str) -> bool:
    """Whether a tensor is, by its name, a factor of loralib's."""
    return _FACTOR.fullmatch(name) is not None


def read_loralib(reading: Reading, *, place: str) -> Reading:
    """Leave out adapters that are zero; others are the reading's `problem`."""
    factors = {name: tensor for name, tensor in reading.state.items() if is_loralib(name)}
    if not factors:
        return reading
    if any(bool(tensor.any()) for name, tensor in factors.items() if name.endswith("B")):
        error = ForeignFormatError(
            f"low-rank adapters of {PRODUCER}, which the base weights hold already or don't: no file shows it",
            place=f"{place}, {next(iter(factors))}",
            hint="call model.eval(), which merges them, and save the state dict without names that hold 'lora_'",
            producer=PRODUCER,
        )
        return replace(reading, problem=error)
    said = f"{PRODUCER}: adapters are zero and left out: {some(list(factors))}"
    return reading.without(factors, PRODUCER, said)
