from .arguments import (
    BATCH_DIGITS as BATCH_DIGITS,
    batch_ranges as batch_ranges,
    say_default_target as say_default_target,
    targets_of as targets_of,
)
from .build_options import (
    BuildArguments as BuildArguments,
    BuildOptions as BuildOptions,
)
from .building import (
    add_engines as add_engines,
    build as build,
    preview as preview,
    preview_engines as preview_engines,
    unpack as unpack,
)
from .calibrating import (
    calibrate as calibrate,
)
from .checking import (
    check as check,
    repair as repair,
)
from .checkpoints import (
    load_checkpoint as load_checkpoint,
    save_checkpoint as save_checkpoint,
)
from .comparing import (
    compare as compare,
    compare_bundles as compare_bundles,
    compare_models as compare_models,
    files_of_runs as files_of_runs,
    timing_commands as timing_commands,
)
from .compressing import (
    compress as compress,
)
from .detecting import (
    Detector as Detector,
    build_detector as build_detector,
    open_detector as open_detector,
)
from .evaluating import (
    evaluate as evaluate,
)
from .exporting import (
    export as export,
)
from .histories import (
    add_to_history as add_to_history,
    compare_history as compare_history,
)
from .measuring import (
    bench as bench,
    calibrate_noise as calibrate_noise,
    interleave as interleave,
    interleave_models as interleave_models,
    measure_load as measure_load,
)
from .opened import (
    OpenBundle as OpenBundle,
    open_bundle as open_bundle,
)
from .predicting import (
    predict_times as predict_times,
)
from .running import (
    BundleSession as BundleSession,
)
from .showing import (
    run as run,
)
