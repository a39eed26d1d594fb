from .fp16_overflow import (
    text_of as text_of,
)
from .int8_outputs import (
    Int8Outputs as Int8Outputs,
)
from .mixed_precision import (
    decide as decide,
)
from .planning import (
    DENSE as DENSE,
    PlanRequest as PlanRequest,
    layers_to_quantize as layers_to_quantize,
    note_others as note_others,
)
from .prepare import (
    find_fp16_overflow as find_fp16_overflow,
    plan_inputs as plan_inputs,
)
from .sites import (
    Int8OutputRequest as Int8OutputRequest,
)
from .smooth_and_range import (
    QuantRequest as QuantRequest,
)
