from .affine import (
    INT8_MAX as INT8_MAX,
    amax_per_channel as amax_per_channel,
    dequantize as dequantize,
    quantize as quantize,
    scale_from_amax as scale_from_amax,
    weight_scales as weight_scales,
)
from .counting import (
    CountedLayer as CountedLayer,
    Counting as Counting,
    count as count,
    counting_text as counting_text,
)
from .error import (
    ErrorSums as ErrorSums,
    Spread as Spread,
    equal_share as equal_share,
    error_sums as error_sums,
    is_floating as is_floating,
    joined as joined,
    spread_of as spread_of,
    sqnr_db as sqnr_db,
    top1_agreement as top1_agreement,
)
from .fp16_range import (
    FLOAT32_LARGEST as FLOAT32_LARGEST,
    FP16_LARGEST as FP16_LARGEST,
    largest_finite as largest_finite,
    overflows_fp16 as overflows_fp16,
    stands_for_infinity as stands_for_infinity,
)
from .gptq import (
    second_order_codes as second_order_codes,
    second_order_int4 as second_order_int4,
)
from .knapsack import (
    best_choice as best_choice,
)
from .layer_weight import (
    LayerWeight as LayerWeight,
    is_matrix as is_matrix,
)
from .low_bit import (
    fp8_codes as fp8_codes,
    fp8_scale as fp8_scale,
    int4_blocks as int4_blocks,
    int4_codes as int4_codes,
    int4_scale as int4_scale,
)
from .samples import (
    SampleAxis as SampleAxis,
    by_sample as by_sample,
    find_sample_axis as find_sample_axis,
)
from .smoothing import (
    Smoothing as Smoothing,
    balanced as balanced,
    cautious as cautious,
    one_sided as one_sided,
)
from .threads import (
    MOST_ADDERS as MOST_ADDERS,
    cpu_workers as cpu_workers,
    single_threaded_blas as single_threaded_blas,
)
from .trace_estimate import (
    spread as spread,
)
from .two_four import (
    GROUP as GROUP,
    KEPT as KEPT,
    Mask as Mask,
    Matrix as Matrix,
    magnitude_mask as magnitude_mask,
    rows_from_conv as rows_from_conv,
    zero_fraction as zero_fraction,
)
from .two_four_census import (
    GroupCensus as GroupCensus,
    Offender as Offender,
    census as census,
    worst_offender as worst_offender,
)
from .two_four_compressed import (
    CompressedMatrix as CompressedMatrix,
    pack as pack,
    unpack as unpack,
)
from .two_four_near_miss import (
    near_miss_mask as near_miss_mask,
)
