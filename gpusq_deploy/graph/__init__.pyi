from .attention import (
    Attention as Attention,
    find_attentions as find_attentions,
    tensors_of as tensors_of,
)
from .batch_axes import (
    SampleAxes as SampleAxes,
    sample_axes as sample_axes,
)
from .bf16_to_fp32 import (
    widened as widened,
)
from .blocks import (
    DriftSite as DriftSite,
    block_sites as block_sites,
    blocks_of_nodes as blocks_of_nodes,
    layer_sites as layer_sites,
)
from .evaluation import (
    evaluate as evaluate,
)
from .files import (
    EXTERNAL_DATA as EXTERNAL_DATA,
    load_model as load_model,
    save_model as save_model,
    save_scratch as save_scratch,
    scratch_disk as scratch_disk,
    scratch_folder as scratch_folder,
    scratch_model as scratch_model,
)
from .findings import (
    lint as lint,
)
from .layers import (
    GraphLayer as GraphLayer,
    origin as origin,
    weight_rows as weight_rows,
    weighted_layers as weighted_layers,
)
from .mapped import (
    map_model as map_model,
    release as release,
)
from .measured_shapes import (
    BATCH as BATCH,
    forget_shapes as forget_shapes,
    frees_batch as frees_batch,
    settle_branches as settle_branches,
    settle_shapes as settle_shapes,
)
from .memory import (
    give_back as give_back,
)
from .nodes import (
    NodeFact as NodeFact,
    node_facts as node_facts,
)
from .passes.attention_scale import (
    AttentionScale as AttentionScale,
    scales_scores as scales_scores,
)
from .passes.base import (
    Pass as Pass,
    heard as heard,
    run_passes as run_passes,
)
from .passes.cast_to_float_type import (
    CastToFloatType as CastToFloatType,
)
from .passes.keep_fp32 import (
    island_nodes as island_nodes,
    keep_fp32 as keep_fp32,
    known_tensors as known_tensors,
)
from .passes.log import (
    PassLog as PassLog,
)
from .passes.merge_qkv import (
    MergeQkv as MergeQkv,
    QkvGroup as QkvGroup,
    find_projections as find_projections,
)
from .passes.pipelines import (
    CANONICAL as CANONICAL,
    FASTER as FASTER,
    SIMPLE as SIMPLE,
)
from .passes.quantize import (
    STORED_TYPE as STORED_TYPE,
    Quantize as Quantize,
    RoundedWeight as RoundedWeight,
    rounded_to_nearest as rounded_to_nearest,
)
from .passes.registry import (
    PASSES as PASSES,
    PIPELINES as PIPELINES,
    make_pass as make_pass,
    pass_names as pass_names,
)
from .passes.smooth import (
    Moved as Moved,
    Smooth as Smooth,
    SmoothedTensor as SmoothedTensor,
    moved_tensors as moved_tensors,
)
from .provenance import (
    nodes_named_in as nodes_named_in,
)
from .residual import (
    Residual as Residual,
    branches_of_nodes as branches_of_nodes,
    find_residuals as find_residuals,
)
from .smoothable import (
    Smoothable as Smoothable,
    bias_place as bias_place,
    find_smoothable as find_smoothable,
)
from .unquantised import (
    without_qdq as without_qdq,
)
from .unread import (
    Unread as Unread,
    unread_weights as unread_weights,
)
from .unsupported_weights import (
    other_weights as other_weights,
)
from .value_channels import (
    ValueChannels as ValueChannels,
)
from .values import (
    NAME_SCOPES as NAME_SCOPES,
    add_initializer as add_initializer,
    array_of as array_of,
    insert_before as insert_before,
    is_constant as is_constant,
    module_of as module_of,
    node_name as node_name,
    static_batch as static_batch,
    value_name as value_name,
)
from .weightless import (
    cut_constants as cut_constants,
    share_weights as share_weights,
)
