"""What lies between a detector's dense parts, as ONNX graphs for ONNX Runtime; of one image each.

TensorRT-RTX parses neither NonZero nor RoiAlign, and can't run NonMaxSuppression. Boxes are `x1, y1, x2, y2` in pixels.

1. `proposals`: objectness and deltas of every map, and the maps → `boxes` [P, 4], `pooled` [P, channels, 7, 7].
2. `detections`: class logits and deltas of the proposals, and the maps → `boxes` [D, 4], `labels` [D], `scores` [D],
   `pooled` [D, channels, 14, 14].
3. `masks`: mask logits, labels and boxes → `masks` [D, 1, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from gpusq_deploy.contrib.detectors.settings import Choice, Coder, Pool, Settings
from gpusq_deploy.contrib.detectors.tape import Operand, Tape, graph_input, typed

_INT64, _FLOAT = ir.DataType.INT64, ir.DataType.FLOAT
_NEVER = float("-inf")  # a score that NonMaxSuppression drops
_END = 2**63 - 1  # of a Slice
_ALL_SCORES = -1.0  # of a sigmoid or a softmax


def proposals_graph(settings: Settings) -> ir.Model:
    """Inputs `size` [2] (the image's height and width within its padding), `map_I`, `objectness_I` and `deltas_I`."""
    op = Tape()
    size = graph_input("size", [2])
    maps = _map_inputs(settings, settings.box_pool)
    objectness: list[ir.Value] = []
    deltas: list[ir.Value] = []
    for place, (height, width) in enumerate(settings.maps):
        count = len(settings.anchors[place]) // (height * width)
        objectness.append(graph_input(f"objectness_{place}", [1, count, height, width]))
        deltas.append(graph_input(f"deltas_{place}", [1, 4 * count, height, width]))
    found = [
        _proposals_of_map(op, settings, place, (objectness[place], deltas[place]), size)
        for place in range(len(settings.maps))
    ]
    boxes = op("Concat", *(boxes for boxes, _ in found), axis=0)
    scores = op("Concat", *(scores for _, scores in found), axis=0)
    _, order = _best(op, scores, settings.proposals.after)
    boxes = op("Gather", boxes, order)
    pooled = _pooled(op, settings.box_pool, maps, boxes)
    outputs = {
        "boxes": typed(boxes, ["proposals", 4]),
        "pooled": typed(pooled, ["proposals", settings.channels, *settings.box_pool.output]),
    }
    return op.model([size, *maps, *objectness, *deltas], outputs, name="proposals")


def detections_graph(settings: Settings) -> ir.Model:
    """Inputs `size`, `map_I`, `logits` [P, classes], `deltas` [P, 4·classes] and `proposals` [P, 4]."""
    op = Tape()
    size = graph_input("size", [2])
    maps = _map_inputs(settings, settings.mask_pool)
    logits = graph_input("logits", ["proposals", "classes"])
    deltas = graph_input("deltas", ["proposals", "deltas"])
    proposals = graph_input("proposals", ["proposals", 4])

    by_class = op("Transpose", op("Reshape", deltas, op("Concat", op("Shape", logits), [4], axis=0)), perm=[1, 0, 2])
    every = _clipped(op, _decoded(op, settings.box_coder, by_class, proposals), size)
    every = op("Slice", every, [1], [_END], [0])  # the first class is the background
    scores = op("Transpose", op("Softmax", logits, axis=-1), perm=[1, 0])
    scores = op("Slice", scores, [1], [_END], [0])
    scores = op("Where", _large(op, every, settings.boxes.side), scores, np.float32(_NEVER))
    kept = _suppressed(op, every, op("Unsqueeze", scores, [1]), settings.boxes, settings.boxes.score)
    where = op("Gather", kept, [0, 2], axis=1)  # class and proposal
    best, order = _best(op, op("GatherND", scores, where), settings.boxes.after)
    where = op("Gather", where, order)
    boxes = op("GatherND", every, where)
    labels = op("Add", op("Gather", where, 0, axis=1), 1)
    outputs = {
        "boxes": typed(boxes, ["detections", 4]),
        "labels": typed(labels, ["detections"], _INT64),
        "scores": typed(best, ["detections"]),
        "pooled": typed(
            _pooled(op, settings.mask_pool, maps, boxes), ["detections", settings.channels, *settings.mask_pool.output]
        ),
    }
    return op.model([size, *maps, logits, deltas, proposals], outputs, name="detections")


def masks_graph() -> ir.Model:
    """Inputs `logits` [D, classes, m, m], `labels` [D], `boxes` [D, 4] and `size` int64 [2], of the masks.

    A mask is drawn on its box, both one pixel of the mask larger at each side, by bilinear interpolation: as two
    products, with the weights of the rows and of the columns.
    """
    op = Tape()
    logits = graph_input("logits", ["detections", "classes", "side", "side"])
    labels = graph_input("labels", ["detections"], _INT64)
    boxes = graph_input("boxes", ["detections", 4])
    size = graph_input("size", [2], _INT64)
    chosen = op("GatherND", op("Sigmoid", logits), op("Unsqueeze", labels, [1]), batch_dims=1)
    padded = op("Pad", chosen, [0, 1, 1, 0, 1, 1])
    inner = op("Cast", op("Gather", op("Shape", logits), [2]), to=_FLOAT)
    outer = op("Add", inner, 2.0)
    low, high = _corners(op, boxes)
    centre = op("Mul", op("Add", high, low), 0.5)
    half = op("Mul", op("Mul", op("Sub", high, low), 0.5), op("Div", outer, inner))
    first = op("Cast", op("Cast", op("Sub", centre, half), to=_INT64), to=_FLOAT)
    last = op("Cast", op("Cast", op("Add", centre, half), to=_INT64), to=_FLOAT)
    rows, columns = (_line_weights(op, (first, last), axis, op("Gather", size, 1 - axis), outer) for axis in (1, 0))
    masks = op("MatMul", op("MatMul", rows, padded), op("Transpose", columns, perm=[0, 2, 1]))
    drawn = typed(op("Unsqueeze", masks, [1]), ["detections", 1, "height", "width"])
    return op.model([logits, labels, boxes, size], {"masks": drawn}, name="masks")


def _map_inputs(settings: Settings, pool: Pool) -> list[ir.Value]:
    return [graph_input(f"map_{place}", [1, settings.channels, *settings.maps[place]]) for place in pool.maps]


def _proposals_of_map(
    op: Tape, settings: Settings, place: int, heads: tuple[ir.Value, ir.Value], size: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Boxes [n, 4] and scores [n] that one map proposes, the best first."""
    choice, anchors = settings.proposals, settings.anchors[place]
    height, width = settings.maps[place]
    count = len(anchors) // (height * width)
    objectness, deltas = heads
    # In the order of the anchors: places, then anchors of a place.
    objectness = op("Reshape", op("Transpose", objectness, perm=[0, 2, 3, 1]), [-1])
    deltas = op("Transpose", op("Reshape", deltas, [count, 4, height, width]), perm=[2, 3, 0, 1])
    deltas = op("Reshape", deltas, [-1, 4])
    best = len(anchors) if choice.before is None else min(choice.before, len(anchors))
    logits, chosen = op.several("TopK", 2, objectness, [best])
    boxes = _decoded(op, settings.proposal_coder, op("Gather", deltas, chosen), op("Gather", anchors, chosen))
    boxes = _clipped(op, boxes, size)
    scores = op("Sigmoid", logits)
    fit = op("And", _large(op, boxes, choice.side), op("GreaterOrEqual", scores, choice.score))
    scores = op("Where", fit, scores, np.float32(_NEVER))
    kept = _suppressed(op, op("Unsqueeze", boxes, [0]), op("Unsqueeze", scores, [0, 1]), choice, _ALL_SCORES)
    rows = op("Gather", kept, 2, axis=1)
    return op("Gather", boxes, rows), op("Gather", scores, rows)


def _corners(op: Tape, boxes: Operand) -> Sequence[ir.Value]:
    """Upper left and lower right, [..., 2] of (x, y) each."""
    return op.several("Split", 2, boxes, [2, 2], axis=-1)


def _decoded(op: Tape, coder: Coder, deltas: ir.Value, boxes: ir.Value) -> ir.Value:
    """Boxes [..., 4] that deltas [..., 4] make of boxes [n, 4]."""
    low, high = _corners(op, boxes)
    sides = op("Sub", high, low)
    centres = op("Add", low, op("Mul", sides, 0.5))
    moves, grows = op.several("Split", 2, op("Div", deltas, np.array(coder.weights, np.float32)), [2, 2], axis=-1)
    centres = op("Add", op("Mul", moves, sides), centres)
    halves = op("Mul", op("Mul", op("Exp", op("Min", grows, np.float32(coder.clip))), sides), 0.5)
    return op("Concat", op("Sub", centres, halves), op("Add", centres, halves), axis=-1)


def _clipped(op: Tape, boxes: ir.Value, size: ir.Value) -> ir.Value:
    return op("Max", op("Min", boxes, op("Gather", size, [1, 0, 1, 0])), 0.0)


def _large(op: Tape, boxes: ir.Value, side: float) -> ir.Value:
    """True where a box [..., 4] has no shorter side."""
    low, high = _corners(op, boxes)
    shorter = op("ReduceMin", op("Sub", high, low), [-1], keepdims=0)
    return op("GreaterOrEqual", shorter, side)


def _suppressed(op: Tape, boxes: ir.Value, scores: ir.Value, choice: Choice, above: float) -> ir.Value:
    """Boxes [b, n, 4] and scores [b, 1, n] → what is kept, int64 [m, 3]: b, 0, n; of each b the best first."""
    return op("NonMaxSuppression", boxes, scores, [choice.after], [choice.overlap], [above])


def _best(op: Tape, scores: ir.Value, most: int) -> Sequence[ir.Value]:
    """At most `most` scores, the best first, and their places."""
    return op.several("TopK", 2, scores, op("Min", op("Shape", scores), [most]))


def _pooled(op: Tape, pool: Pool, maps: Sequence[ir.Value], boxes: ir.Value) -> ir.Value:
    """RoIAlign [n, channels, *pool.output] of boxes [n, 4], each from its map."""
    if len(maps) == 1:
        return _aligned(op, pool, 0, maps[0], boxes)
    low, high = _corners(op, boxes)
    side = op("Sqrt", op("ReduceProd", op("Sub", high, low), [-1], keepdims=0))
    doublings = op("Div", op("Log", op("Div", side, pool.canonical_size)), np.float32(np.log(2)))
    level = op("Floor", op("Add", op("Add", doublings, pool.canonical_level), np.float32(pool.epsilon)))
    level = op("Clip", level, float(pool.lowest), float(pool.lowest + len(maps) - 1))
    members: list[ir.Value] = []
    parts: list[ir.Value] = []
    for place, values in enumerate(maps):
        mine = op("Reshape", op("NonZero", op("Equal", level, float(pool.lowest + place))), [-1])
        members.append(mine)
        parts.append(_aligned(op, pool, place, values, op("Gather", boxes, mine)))
    order = op("Concat", *members, axis=0)
    count = op("Shape", order)
    back = op("ScatterElements", order, order, op("Range", 0, op("Squeeze", count), 1))
    return op("Gather", op("Concat", *parts, axis=0), back)


def _aligned(op: Tape, pool: Pool, place: int, values: ir.Value, boxes: ir.Value) -> ir.Value:
    height, width = pool.output
    image = op("ConstantOfShape", op("Shape", boxes, end=1), value=ir.tensor(np.zeros(1, np.int64)))
    return op(
        "RoiAlign",
        values,
        boxes,
        image,
        coordinate_transformation_mode="output_half_pixel",
        output_height=height,
        output_width=width,
        sampling_ratio=pool.sampling,
        spatial_scale=pool.scales[place],
    )


def _line_weights(op: Tape, box: tuple[ir.Value, ir.Value], axis: int, length: ir.Value, side: ir.Value) -> ir.Value:
    """What each of a mask's `side` lines gives to each of an image's `length` lines, [n, length, side]."""
    first, last = (op("Gather", corner, [axis], axis=1) for corner in box)
    step = op("Div", side, op("Max", op("Add", op("Sub", last, first), 1.0), 1.0))
    line = op("Cast", op("Range", 0, length, 1), to=_FLOAT)
    place = op("Sub", op("Mul", op("Add", op("Sub", line, first), 0.5), step), 0.5)
    place = op("Min", op("Max", place, 0.0), op("Sub", side, 1.0))
    lines = op("Cast", op("Range", 0, op("Squeeze", op("Cast", side, to=_INT64)), 1), to=_FLOAT)
    weights = op("Max", op("Sub", 1.0, op("Abs", op("Sub", op("Unsqueeze", place, [2]), lines))), 0.0)
    inside = op("And", op("GreaterOrEqual", line, first), op("LessOrEqual", line, last))
    return op("Mul", weights, op("Cast", op("Unsqueeze", inside, [2]), to=_FLOAT))
