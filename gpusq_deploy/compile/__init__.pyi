from .add_engines import (
    Extended as Extended,
    Extension as Extension,
    checked_extension as checked_extension,
    extend_bundle as extend_bundle,
    unpack_bundle as unpack_bundle,
)
from .calibrate import (
    CalibrateRequest as CalibrateRequest,
    calibrate_checkpoint as calibrate_checkpoint,
)
from .dry_run import (
    Preview as Preview,
    preview as preview,
)
from .float_graph import (
    export_graph as export_graph,
)
from .inputs import (
    open_inputs as open_inputs,
)
from .observe_stage import (
    observe_graph as observe_graph,
)
from .pipeline import (
    build_bundle as build_bundle,
    compile_checkpoint as compile_checkpoint,
)
from .predict import (
    PredictRequest as PredictRequest,
    predict_times as predict_times,
)
from .repair import (
    RepairRequest as RepairRequest,
    repair_checkpoint as repair_checkpoint,
)
from .request import (
    UNUSED_RECIPE as UNUSED_RECIPE,
    BuildRequest as BuildRequest,
    RequestError as RequestError,
    TaskData as TaskData,
)
from .rewrite_selection import (
    CostProbe as CostProbe,
    RewriteSelection as RewriteSelection,
    select_rewrites as select_rewrites,
)
from .target_checks import (
    expressible_recipe as expressible_recipe,
)
