from .api import (
    BuildOptions as BuildOptions,
    BundleSession as BundleSession,
    Detector as Detector,
    OpenBundle as OpenBundle,
    add_engines as add_engines,
    add_to_history as add_to_history,
    bench as bench,
    build as build,
    build_detector as build_detector,
    calibrate as calibrate,
    calibrate_noise as calibrate_noise,
    check as check,
    compare as compare,
    compare_bundles as compare_bundles,
    compare_history as compare_history,
    compare_models as compare_models,
    compress as compress,
    evaluate as evaluate,
    export as export,
    interleave as interleave,
    interleave_models as interleave_models,
    load_checkpoint as load_checkpoint,
    measure_load as measure_load,
    open_bundle as open_bundle,
    open_detector as open_detector,
    predict_times as predict_times,
    preview as preview,
    preview_engines as preview_engines,
    repair as repair,
    run as run,
    save_checkpoint as save_checkpoint,
    unpack as unpack,
)
from .artifacts import (
    ArchSpec as ArchSpec,
    BatchRange as BatchRange,
    Preprocessing as Preprocessing,
)
from .errors import (
    GpusqError as GpusqError,
)
from .progress import (
    Reporter as Reporter,
)

__version__: str
