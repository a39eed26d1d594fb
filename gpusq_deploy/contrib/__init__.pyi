from .detectors.between import (
    write_between as write_between,
)
from .detectors.mask_rcnn import (
    Detections as Detections,
    MaskRcnn as MaskRcnn,
)
from .detectors.parts import (
    SWIN_T as SWIN_T,
    Part as Part,
)
from .detectors.record import (
    record_pooled as record_pooled,
)
from .detectors.settings import (
    settings_of as settings_of,
)
