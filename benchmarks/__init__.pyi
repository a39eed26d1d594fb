from .bundle_comparison import (
    BundleComparison as BundleComparison,
    compare_bundles as compare_bundles,
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
