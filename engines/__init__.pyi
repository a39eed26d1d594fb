from .api import (
    TRAITS as TRAITS,
    BackendName as BackendName,
    find_api as find_api,
    load_api as load_api,
)
from .backend_choice import (
    BackendChoice as BackendChoice,
    RuntimeChoice as RuntimeChoice,
    choose_backend as choose_backend,
    choose_runtime as choose_runtime,
    open_session as open_session,
)
from .builder import (
    EngineBuild as EngineBuild,
    EngineBuildOptions as EngineBuildOptions,
    build_engine as build_engine,
)
from .configure import (
    BuildSettings as BuildSettings,
)
from .cost import (
    graph_cost as graph_cost,
    layers_at as layers_at,
)
from .gpu import (
    Gpu as Gpu,
    NoGpu as NoGpu,
    find_bus as find_bus,
    find_gpu as find_gpu,
)
from .health import (
    HealthCheck as HealthCheck,
    check_builder as check_builder,
    check_engines as check_engines,
    check_gpu as check_gpu,
    check_nvidia_smi as check_nvidia_smi,
    check_onnxruntime as check_onnxruntime,
)
from .installed import (
    ENGINES as ENGINES,
    LIBRARIES as LIBRARIES,
    PACKAGE as PACKAGE,
    all_versions as all_versions,
    installed_versions as installed_versions,
)
from .kernel_names import (
    KernelTrace as KernelTrace,
    read_kernel_names as read_kernel_names,
)
from .kernel_times import (
    MeasuredKernels as MeasuredKernels,
    ProfiledTimes as ProfiledTimes,
    measured_kernels as measured_kernels,
    read_kernel_times as read_kernel_times,
)
from .layer_classes import (
    STUB as STUB,
    LayerClass as LayerClass,
    classify as classify,
    generated_product as generated_product,
    sparse_tactic as sparse_tactic,
    totals as totals,
)
from .layer_cost import (
    compared as compared,
    layer_shares as layer_shares,
)
from .layer_lists import (
    LayerLists as LayerLists,
    layers_apart as layers_apart,
)
from .option_text import (
    options_from_text as options_from_text,
    texts_from_options as texts_from_options,
)
from .ort import (
    open_onnx as open_onnx,
)
from .parse_check import (
    unparsed as unparsed,
)
from .prediction.constants import (
    Fitted as Fitted,
    Spread as Spread,
    load_fitted as load_fitted,
)
from .prediction.devices import (
    Device as Device,
    device_of_target as device_of_target,
    find_device as find_device,
    load_devices as load_devices,
)
from .prediction.estimate import (
    predict as predict,
)
from .prediction.kernel_works import (
    kernel_works as kernel_works,
    kernels_of as kernels_of,
    plain_name as plain_name,
    predicted_microseconds as predicted_microseconds,
    works_by_kernel as works_by_kernel,
)
from .prediction.parts import (
    Adjustment as Adjustment,
    adjustment as adjustment,
    parts_of_works as parts_of_works,
)
from .prediction.values import (
    DevicePrediction as DevicePrediction,
    Prediction as Prediction,
    Variant as Variant,
    VariantTime as VariantTime,
)
from .prediction.work import (
    Work as Work,
    with_sparse as with_sparse,
    work_of as work_of,
)
from .releases import (
    opset_problem as opset_problem,
    option_problems as option_problems,
    release_here as release_here,
    releases_for as releases_for,
)
from .session import (
    Session as Session,
    SharedSession as SharedSession,
    TensorSpec as TensorSpec,
)
from .targets import (
    GemmNeed as GemmNeed,
    Target as Target,
    check_request as check_request,
    find_target as find_target,
    load_targets as load_targets,
    padding_notes as padding_notes,
)
from .timing_cache import (
    cache_file as cache_file,
    read_cache as read_cache,
    write_cache as write_cache,
)
