from .fp16_overflow import (
    text_of as text_of,
)
from .int8_outputs import (
    Int8Outputs as Int8Outputs,
)
from .kept_grids import (
    Grid as Grid,
    with_kept_grids as with_kept_grids,
)
from .mixed_precision import (
    PlannedWeights as PlannedWeights,
    decide as decide,
)
from .needs import (
    observations_needed as observations_needed,
    require_data as require_data,
)
from .overflow_search import (
    find_fp16_overflow as find_fp16_overflow,
)
from .planning import (
    DENSE as DENSE,
    PlanRequest as PlanRequest,
    layers_to_quantize as layers_to_quantize,
    make_plan as make_plan,
    note_others as note_others,
)
from .prepare import (
    PlanInputs as PlanInputs,
    plan_inputs as plan_inputs,
)
from .qkv_merge import (
    MergedGraph as MergedGraph,
    merge_qkv as merge_qkv,
)
from .quant_request import (
    QuantRequest as QuantRequest,
)
from .sites import (
    ActivationSites as ActivationSites,
    Int8OutputRequest as Int8OutputRequest,
)
