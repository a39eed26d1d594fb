from .bundle_comparison import (
    BundleComparison as BundleComparison,
    compare_bundles as compare_bundles,
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
