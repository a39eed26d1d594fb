from .checkpoint.account import (
    form_of as form_of,
)
from .checkpoint.adapters.quantizer_record import (
    InputQuantizer as InputQuantizer,
    QuantizerRecord as QuantizerRecord,
    RangeProblem as RangeProblem,
    WeightGrid as WeightGrid,
    symmetric_quantizer as symmetric_quantizer,
)
from .checkpoint.adapters.refusal import (
    ForeignFormatError as ForeignFormatError,
)
from .checkpoint.architecture import (
    arch_from_text as arch_from_text,
    module_from_arch as module_from_arch,
    skeleton_from_arch as skeleton_from_arch,
    text_from_arch as text_from_arch,
)
from .checkpoint.catalogue import (
    known_architectures as known_architectures,
)
from .checkpoint.files import (
    SELF_DESCRIBING as SELF_DESCRIBING,
    read_checkpoint_file as read_checkpoint_file,
    require_another_file as require_another_file,
    write_torch as write_torch,
)
from .checkpoint.input_offsets import (
    with_offsets as with_offsets,
)
from .checkpoint.layer_names import (
    layer_of as layer_of,
    weight_of as weight_of,
)
from .checkpoint.load import (
    Checkpoint as Checkpoint,
    TorchModule as TorchModule,
    load_checkpoint as load_checkpoint,
    save_checkpoint as save_checkpoint,
)
from .checkpoint.modules import (
    named_modules as named_modules,
)
from .checkpoint.optional_libraries import (
    current_folder as current_folder,
    library as library,
)
from .checkpoint.preprocessing import (
    preprocessing_of as preprocessing_of,
)
from .checkpoint.pretrained_folder import (
    is_saved_folder as is_saved_folder,
    saved_folder as saved_folder,
    weights_file as weights_file,
)
from .checkpoint.rewrite import (
    rewrite_checkpoint as rewrite_checkpoint,
    tensors_in_file as tensors_in_file,
)
from .checkpoint.tensors import (
    array_from_tensor as array_from_tensor,
    drop_weights as drop_weights,
    release_weights as release_weights,
)
from .checkpoint.weights import (
    counted_weights as counted_weights,
    layer_weights as layer_weights,
    rows_of as rows_of,
    weights_in_file as weights_in_file,
)
from .export.names import (
    MODELS_OWN as MODELS_OWN,
    Names as Names,
)
from .export.onnx_export import (
    example_input as example_input,
    export_float_model as export_float_model,
    reference_outputs as reference_outputs,
)
from .onnx_file.export import (
    batch_of_file as batch_of_file,
)
from .onnx_file.preprocessing import (
    preprocessing_of_onnx as preprocessing_of_onnx,
)
from .onnx_file.read import (
    digest_of_onnx as digest_of_onnx,
    load_onnx as load_onnx,
)
from .path_kind import (
    is_bundle as is_bundle,
    is_onnx as is_onnx,
    kind_of as kind_of,
)
