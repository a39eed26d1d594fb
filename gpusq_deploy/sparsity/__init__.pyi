from .check import (
    require_known_layers as require_known_layers,
    require_sparse as require_sparse,
    sparsity_report as sparsity_report,
    unread_tensors as unread_tensors,
    violation_text as violation_text,
    without_lost_masks as without_lost_masks,
    worst_text as worst_text,
)
from .compressed_file import (
    DENSE as DENSE,
    PACKED as PACKED,
    compress_weights as compress_weights,
    compressed_line as compressed_line,
    lacks_dense as lacks_dense,
    packed_faults as packed_faults,
    packed_index as packed_index,
    require_dense as require_dense,
    unpack_dense as unpack_dense,
)
from .compressing.compress import (
    compress_checkpoint as compress_checkpoint,
)
from .compressing.report import (
    Compression as Compression,
)
from .compressing.request import (
    CompressReporter as CompressReporter,
    CompressRequest as CompressRequest,
)
from .graph_check import (
    graph_sparsity as graph_sparsity,
    require_same_sparsity as require_same_sparsity,
    sparsity_kept as sparsity_kept,
)
from .permutation.free_channels import (
    find_channels as find_channels,
)
from .permutation.module_parts import (
    left_alone as left_alone,
)
from .permutation.reorder import (
    Reorder as Reorder,
    Tensors as Tensors,
    keep_proven as keep_proven,
    permuted_from as permuted_from,
    places_of as places_of,
    reordered as reordered,
)
from .permutation.search import (
    Permutation as Permutation,
    broken_groups as broken_groups,
    find_valid_order as find_valid_order,
    kept_by_24 as kept_by_24,
    search_permutation as search_permutation,
)
from .pruning.checkpoint import (
    Pruning as Pruning,
    prune_checkpoint as prune_checkpoint,
)
from .reconstruction.reconstruct import (
    BlockError as BlockError,
    PassResult as PassResult,
    Reconstruction as Reconstruction,
)
from .repair.equivalence import (
    TensorRunner as TensorRunner,
)
from .repair.near_misses import (
    mend_near_misses as mend_near_misses,
)
from .training.data.class_order import (
    exchanged as exchanged,
    other_order as other_order,
)
from .training.data.entries import (
    Entries as Entries,
    Entry as Entry,
    Read as Read,
    Reader as Reader,
)
from .training.data.label_maps import (
    has_maps as has_maps,
)
from .training.data.load import (
    DataRequest as DataRequest,
    Labels as Labels,
    OpenedData as OpenedData,
    open_data as open_data,
    reader_of as reader_of,
)
from .training.data.split import (
    SplitOptions as SplitOptions,
)
from .training.options import (
    DistillOptions as DistillOptions,
    EpochResult as EpochResult,
    StepResult as StepResult,
)
from .training.resume import (
    Every as Every,
)
from .training.tasks.choose import (
    task_of as task_of,
)
from .training.tasks.classification import (
    Classification as Classification,
)
from .training.tasks.detection import (
    Detection as Detection,
    coco_evaluation as coco_evaluation,
)
from .training.tasks.segmentation import (
    IGNORED as IGNORED,
    Segmentation as Segmentation,
)
from .training.tasks.task import (
    Measure as Measure,
    Task as Task,
)
