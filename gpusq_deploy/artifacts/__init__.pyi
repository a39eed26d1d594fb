from .arch import (
    UNDECLARED as UNDECLARED,
    UNDECLARED_FILE as UNDECLARED_FILE,
    ArchArgument as ArchArgument,
    ArchSpec as ArchSpec,
    CropMode as CropMode,
    Interpolation as Interpolation,
    Preprocessing as Preprocessing,
    preprocessing_of_shape as preprocessing_of_shape,
)
from .base import (
    Value as Value,
    builtins_from_value as builtins_from_value,
    digest_of_bytes as digest_of_bytes,
    digest_of_file as digest_of_file,
    json_from_value as json_from_value,
    read_value as read_value,
    require_folder as require_folder,
    require_input as require_input,
    value_from_json as value_from_json,
    value_from_toml as value_from_toml,
    write_whole as write_whole,
    written_whole as written_whole,
)
from .build_options import (
    BuildOptionsRecord as BuildOptionsRecord,
    RewriteChoice as RewriteChoice,
)
from .bundle_layout import (
    CALIBRATION as CALIBRATION,
    ENGINES as ENGINES,
    MANIFEST as MANIFEST,
    MODEL as MODEL,
    PLAN as PLAN,
    RECEIPT as RECEIPT,
    REPORT as REPORT,
)
from .calibration import (
    AMAX as AMAX,
    CalibrationTable as CalibrationTable,
    Calibrator as Calibrator,
    CalibratorName as CalibratorName,
    TensorRange as TensorRange,
)
from .expectations import (
    EVERY_ENGINE as EVERY_ENGINE,
    ChangeBudgets as ChangeBudgets,
    Check as Check,
    EngineBudgets as EngineBudgets,
    EngineExpectation as EngineExpectation,
    Expectations as Expectations,
    LayerExpectation as LayerExpectation,
    parse_bound as parse_bound,
)
from .export_record import (
    EXPORT as EXPORT,
    ExportKind as ExportKind,
    ExportRecord as ExportRecord,
)
from .file_account import (
    FileAccount as FileAccount,
)
from .finding import (
    Finding as Finding,
)
from .machine_state import (
    EnergySample as EnergySample,
    MachineState as MachineState,
    ProcessStates as ProcessStates,
)
from .manifest import (
    NO_OPTIONS as NO_OPTIONS,
    BatchRange as BatchRange,
    BundleFile as BundleFile,
    EngineOptions as EngineOptions,
    Manifest as Manifest,
    ModelSource as ModelSource,
)
from .packed import (
    CompressedIndex as CompressedIndex,
    CompressedTensor as CompressedTensor,
)
from .plan import (
    ActivationQuantization as ActivationQuantization,
    AttentionRole as AttentionRole,
    FloatPrecision as FloatPrecision,
    Fp32Tensor as Fp32Tensor,
    LayerDecision as LayerDecision,
    LayerKind as LayerKind,
    PlacedQuantization as PlacedQuantization,
    PlacedRole as PlacedRole,
    Precision as Precision,
    QuantPlan as QuantPlan,
    ResidualRole as ResidualRole,
    WeightQuantization as WeightQuantization,
    parts_of as parts_of,
)
from .receipt import (
    EQUAL_DB as EQUAL_DB,
    Agreement as Agreement,
    BuiltEngine as BuiltEngine,
    BuiltLayer as BuiltLayer,
    Carrier as Carrier,
    CostEstimate as CostEstimate,
    Drift as Drift,
    EngineLayer as EngineLayer,
    EngineTensor as EngineTensor,
    EngineTotals as EngineTotals,
    ExpectedOutput as ExpectedOutput,
    GraphCost as GraphCost,
    KernelWork as KernelWork,
    LayerCost as LayerCost,
    LayerShare as LayerShare,
    Payoff as Payoff,
    PredictedTimes as PredictedTimes,
    ProducerComparison as ProducerComparison,
    PruningLoss as PruningLoss,
    Receipt as Receipt,
    Reference as Reference,
    SkippedTarget as SkippedTarget,
    TaskAccuracy as TaskAccuracy,
    Verification as Verification,
    YesNoUnknown as YesNoUnknown,
)
from .recipe import (
    DEFAULT_RECIPE as DEFAULT_RECIPE,
    FP8_RECIPE as FP8_RECIPE,
    INT4_RECIPE as INT4_RECIPE,
    OPSETS as OPSETS,
    RESIDUAL_ROLES as RESIDUAL_ROLES,
    ROLES_OF as ROLES_OF,
    SHIPPED as SHIPPED,
    AttentionRule as AttentionRule,
    MixedRule as MixedRule,
    Placement as Placement,
    QuantizedPrecision as QuantizedPrecision,
    Recipe as Recipe,
    ResidualInputs as ResidualInputs,
    ResidualRule as ResidualRule,
    Rule as Rule,
    load_recipe as load_recipe,
    require_used_rules as require_used_rules,
)
from .recorded_recipe import (
    RecordedRecipe as RecordedRecipe,
    TrainedLayer as TrainedLayer,
)
from .repair import (
    ChannelAxis as ChannelAxis,
    ChannelKind as ChannelKind,
    Channels as Channels,
    Declined as Declined,
    HowFound as HowFound,
    NearMisses as NearMisses,
    Permuted as Permuted,
    Proof as Proof,
    Repair as Repair,
)
from .runs import (
    EngineBuilds as EngineBuilds,
    EngineRebuild as EngineRebuild,
    Environment as Environment,
    MeasureSettings as MeasureSettings,
    Runs as Runs,
    RuntimeInfo as RuntimeInfo,
    Series as Series,
)
from .sparsity import (
    RECONSTRUCTIONS as RECONSTRUCTIONS,
    CompressStage as CompressStage,
    Diagnosis as Diagnosis,
    GroupViolation as GroupViolation,
    LayerSparsity as LayerSparsity,
    MixedPrecision as MixedPrecision,
    PruneMethod as PruneMethod,
    RateSchedule as RateSchedule,
    SparsityRecord as SparsityRecord,
    SparsityReport as SparsityReport,
    TrainOptimizer as TrainOptimizer,
    WorstGroup as WorstGroup,
)
