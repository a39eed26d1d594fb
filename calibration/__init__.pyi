from .array_data import (
    called as called,
    names_factory as names_factory,
)
from .calibrator_choice import (
    calibrators_for as calibrators_for,
)
from .calibrators import (
    range_of as range_of,
)
from .data import (
    RANDOM as RANDOM,
    ArrayFile as ArrayFile,
    Batches as Batches,
    DataSource as DataSource,
    ImageFolder as ImageFolder,
    Selection as Selection,
    filled as filled,
    open_source as open_source,
    preprocessing_of_arrays as preprocessing_of_arrays,
    require_few_skipped as require_few_skipped,
    split_source as split_source,
    spread_evenly as spread_evenly,
    spread_indices as spread_indices,
)
from .distributed import (
    Ranks as Ranks,
    ended_by_sigterm as ended_by_sigterm,
    ranks_from_environment as ranks_from_environment,
)
from .histogram import (
    Counts as Counts,
    Histogram as Histogram,
    counts_of as counts_of,
)
from .image_data import (
    Fitted as Fitted,
    Sample as Sample,
    fit_image as fit_image,
    load_image as load_image,
    sample_from_image as sample_from_image,
)
from .image_decoding import (
    turned_remark as turned_remark,
)
from .image_frame import (
    frame_of as frame_of,
)
from .image_listing import (
    SUFFIXES as SUFFIXES,
    image_files as image_files,
)
from .instrument import (
    MOVES as MOVES,
    VALUES_SUFFIX as VALUES_SUFFIX,
    instrumented as instrumented,
)
from .moments import (
    ChannelMoments as ChannelMoments,
)
from .needs import (
    Needs as Needs,
    Observations as Observations,
    RangeNeed as RangeNeed,
    needs_of_layers as needs_of_layers,
)
from .observe import (
    Observing as Observing,
)
from .ranges import (
    CalibrationInputs as CalibrationInputs,
    KnownRanges as KnownRanges,
    ModelFacts as ModelFacts,
    calibrated as calibrated,
    joined_ranges as joined_ranges,
    known_ranges as known_ranges,
)
from .ranges_file import (
    read_ranges as read_ranges,
)
from .session_module import (
    SessionModule as SessionModule,
)
from .tensorrt_cache import (
    require_borne_out as require_borne_out,
)
