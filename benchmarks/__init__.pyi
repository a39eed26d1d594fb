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
from .bundles.comparison import (
    BundleComparison as BundleComparison,
    compare_bundles as compare_bundles,
)
from .bundles.writers import (
    junit_from_bundles as junit_from_bundles,
    markdown_from_bundles as markdown_from_bundles,
)
from .comparison_html import (
    bundle_comparison_page as bundle_comparison_page,
    comparison_page as comparison_page,
)
from .gate import (
    GateResult as GateResult,
    Gates as Gates,
    GateSettings as GateSettings,
    interleave as interleave,
    interleave_models as interleave_models,
    sided as sided,
)
from .gate_report import (
    gate_line as gate_line,
    junit_from_gate as junit_from_gate,
    markdown_from_gate as markdown_from_gate,
    text_from_gate as text_from_gate,
)
from .history.change_points import (
    HistoryReport as HistoryReport,
    changes_of as changes_of,
)
from .history.entry import (
    current_commit as current_commit,
    entries_of as entries_of,
    file_name as file_name,
)
from .history.file import (
    append_entries as append_entries,
    read_history as read_history,
)
from .history.report import (
    history_line as history_line,
    history_page as history_page,
    text_from_history as text_from_history,
)
from .latency_html import (
    latency_parts as latency_parts,
)
from .load.recording import (
    record_load as record_load,
)
from .load.report import (
    text_from_load as text_from_load,
)
from .load.values import (
    Load as Load,
    TrialRequest as TrialRequest,
)
from .machine.power import (
    find_source as find_source,
)
from .noise import (
    CALIBRATION_PAIRS as CALIBRATION_PAIRS,
    MachineNoise as MachineNoise,
    noise_of as noise_of,
)
from .rebuilds import (
    rebuilt as rebuilt,
    require_rebuildable as require_rebuildable,
)
from .recording import (
    record as record,
)
from .regression import (
    Comparison as Comparison,
    Comparisons as Comparisons,
    NamedComparison as NamedComparison,
    compare as compare,
    compare_named as compare_named,
)
from .regression_report import (
    comparison_line as comparison_line,
    junit_from_comparison as junit_from_comparison,
    markdown_from_comparison as markdown_from_comparison,
    text_from_comparison as text_from_comparison,
)
from .report import (
    text_from_runs as text_from_runs,
)
from .subject import (
    MeasuredModel as MeasuredModel,
    find_subject as find_subject,
)
