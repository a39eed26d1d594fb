from .fp16_overflow import (
    Wide as Wide,
    text_of as text_of,
    wide_in as wide_in,
)
from .int8_outputs import (
    Outputs as Outputs,
)
from .mixed_precision import (
    decide as decide,
)
from .planning import (
    DENSE as DENSE,
    PlanRequest as PlanRequest,
    layers_to_quantize as layers_to_quantize,
)
from .prepare import (
    prepare as prepare,
)
from .sites import (
    OutputWish as OutputWish,
)
from .smooth_and_range import (
    Wanted as Wanted,
)
