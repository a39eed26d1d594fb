from .files import (
    Bundle as Bundle,
    damaged_files as damaged_files,
    files_in as files_in,
    is_ours as is_ours,
    keep_beside as keep_beside,
    new_bundle as new_bundle,
    read_bundle as read_bundle,
    require_accepted as require_accepted,
    require_place as require_place,
    require_whole as require_whole,
    write_value as write_value,
)
from .handover.model import (
    handed_model as handed_model,
)
from .handover.writing import (
    handover_for as handover_for,
    require_export_place as require_export_place,
    write_handover as write_handover,
)
from .receipt import (
    CODED as CODED,
    built_layers as built_layers,
    with_profile as with_profile,
)
from .report.cost_text import (
    layer_cost_text as layer_cost_text,
)
from .report.expectations import (
    check_bound as check_bound,
    check_receipt as check_receipt,
    failed as failed,
    load_budgets as load_budgets,
    load_expectations as load_expectations,
)
from .report.html.page import (
    render_page as render_page,
    require_page as require_page,
    save_page as save_page,
)
from .report.html.plots import (
    dots_plot as dots_plot,
)
from .report.html.report import (
    report_page as report_page,
)
from .report.html.values import (
    LatencyPart as LatencyPart,
    LatencyRow as LatencyRow,
    Standing as Standing,
)
from .report.html.verdict import (
    verdict_cards as verdict_cards,
)
from .report.kernel_times import (
    KernelTimes as KernelTimes,
    all_works as all_works,
    kernel_works_of as kernel_works_of,
    predicted_kernel_times as predicted_kernel_times,
    times_of_kernels as times_of_kernels,
)
from .report.layer_rows import (
    explained_engine as explained_engine,
)
from .report.node_data import (
    node_data as node_data,
    write_node_data as write_node_data,
)
from .report.prediction_text import (
    print_prediction as print_prediction,
)
from .report.sparse_chain import (
    LayerExplanation as LayerExplanation,
    explain_layers as explain_layers,
    flops_shares as flops_shares,
    recorded as recorded,
)
from .report.tables import (
    print_pairs as print_pairs,
    print_rows as print_rows,
    result_console as result_console,
)
from .report.terminal import (
    bundle_json as bundle_json,
    print_bundle as print_bundle,
    print_receipt as print_receipt,
)
from .report.terminal_chain import (
    print_chains as print_chains,
)
from .report.warnings import (
    bundle_doubts as bundle_doubts,
    compared_text as compared_text,
    constant_text as constant_text,
    producer_text as producer_text,
    pruning_doubts as pruning_doubts,
    receipt_doubts as receipt_doubts,
    task_text as task_text,
    verification_warnings as verification_warnings,
)
from .sealing import (
    seal as seal,
)
from .validation import (
    Validation as Validation,
    explanations as explanations,
    validate as validate,
)
