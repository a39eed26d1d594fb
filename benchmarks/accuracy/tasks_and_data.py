"""Tasks and data sets, which training has too: the one place here that knows the room that holds them."""

from gpusq_deploy.sparsity import (
    Classification as Classification,
    DataRequest as DataRequest,
    Detection as Detection,
    Entries as Entries,
    Entry as Entry,
    Labels as Labels,
    Measure as Measure,
    OpenedData as OpenedData,
    Read as Read,
    Reader as Reader,
    Segmentation as Segmentation,
    SplitOptions as SplitOptions,
    Task as Task,
    coco_evaluation as coco_evaluation,
    has_maps as has_maps,
    open_data as open_data,
    other_order as other_order,
    reader_of as reader_of,
    task_of as task_of,
)
