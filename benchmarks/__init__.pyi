from .accuracy.evaluate import (
    evaluate_subjects as evaluate_subjects,
)
from .accuracy.instances import (
    Instances as Instances,
    shown_instances as shown_instances,
)
from .accuracy.showing import (
    RunRequest as RunRequest,
    run_images as run_images,
)
from .accuracy.shown import (
    RunAnswers as RunAnswers,
    ShownImage as ShownImage,
    places_of as places_of,
    texts_of as texts_of,
)
from .accuracy.table import (
    heading_of as heading_of,
    rows_of as rows_of,
)
from .accuracy.values import (
    EvalRequest as EvalRequest,
    Evaluation as Evaluation,
    TaskRequest as TaskRequest,
)
from .bundle_comparison import (
    BundleComparison as BundleComparison,
    compare_bundles as compare_bundles,
)
from .comparison_html import (
    bundle_comparison_page as bundle_comparison_page,
    comparison_page as comparison_page,
)
from .gate import (
    GateResult as GateResult,
    GateSettings as GateSettings,
    interleave as interleave,
    sided as sided,
)
from .gate_report import (
    gate_line as gate_line,
    junit_from_gate as junit_from_gate,
    markdown_from_gate as markdown_from_gate,
    text_from_gate as text_from_gate,
)
from .latency_html import (
    latency_parts as latency_parts,
)
from .noise import (
    CALIBRATION_PAIRS as CALIBRATION_PAIRS,
    MachineNoise as MachineNoise,
    noise_of as noise_of,
)
from .recording import (
    record as record,
)
from .regression import (
    Comparison as Comparison,
    compare as compare,
)
from .report import (
    text_from_comparison as text_from_comparison,
    text_from_runs as text_from_runs,
)
from .subject import (
    MeasuredModel as MeasuredModel,
    find_subject as find_subject,
)
