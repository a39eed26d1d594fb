"""Items of a user's iterable to samples: arrays, tensors, images, and the pairs and dicts of data loaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from gpusq_deploy.artifacts import Preprocessing
from gpusq_deploy.calibration.image_data import sample_from_image
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import some

# Of several entries that the model could take, the first of these, whatever its case.
KEYS = ("pixel_values", "image", "images", "img", "input", "inputs", "x", "data")

# What numpy makes arrays of without asking it.
_PLAIN = frozenset({list, tuple, bool, int, float})

Array = npt.NDArray[Any]


@dataclass(kw_only=True, slots=True)
class ItemReader:
    """Takes the model's input out of items.

    Attributes:
        preprocessing: What the model declares.
        name: Where the items come from.
        taken: The keys under which the input lay.
        pixels: How 8-bit arrays were read.
        most: So many samples an item may hold, where a data loader says it. [N, H, W] of no more are grey images; of
            one image [3, H, W] the shape may be the same.
    """

    preprocessing: Preprocessing
    name: str
    taken: dict[str, None] = field(default_factory=dict[str, None])
    pixels: dict[str, None] = field(default_factory=dict[str, None])
    most: int = 0

    def batches(self, items: Iterable[Any]) -> Iterator[Array]:
        """Samples of each item: float [n, *sample].

        Raises:
            GpusqError: An item holds nothing that the model takes.
        """
        self.most = _batch_size(items)
        for index, item in enumerate(each(items)):
            batch = self._batch(item)
            if batch is None:
                raise self._refusal(item, index)
            yield batch

    def _batch(self, item: Any) -> Array | None:
        if _is_mapping(item):
            return self._entry(item)
        if isinstance(item, (tuple, list)):
            entries = cast("Sequence[Any]", item)
            if isinstance(item, list) and len(entries) > 1 and all(_is_pixels(entry) for entry in entries):
                self.most = 0  # a batch that nobody stacked: each entry is one image
            found = [self._fitting(value) for value in entries]
            fitting = [batch for batch in found if batch is not None]
            if isinstance(item, list) and fitting and len(fitting) == len(found):  # a batch that nobody stacked
                return np.concatenate(fitting)
            return fitting[0] if fitting else None
        return self._fitting(item)

    def _entry(self, item: Mapping[Any, Any]) -> Array | None:
        keys = list(item.keys())
        for key in sorted(keys, key=_preference):
            batch = self._fitting(item[key])
            if batch is not None:
                self.taken[str(key)] = None
                return batch
        return None

    def _fitting(self, value: Any) -> Array | None:
        """The samples in a value, if it is what the model takes: float as it is, images and 8-bit pixels prepared."""
        shape = self.preprocessing.sample_shape
        images = self.preprocessing.is_image and self.preprocessing.is_declared
        if isinstance(value, Image.Image):
            return sample_from_image(value, self.preprocessing)[None] if images else None
        array = _array(value)
        if array is None:
            return None
        if array.dtype.kind == "f" and array.shape[-len(shape) :] == shape and array.ndim - len(shape) in (0, 1):
            return array.reshape(-1, *shape)
        return self._prepared(array) if images and array.dtype == np.uint8 else None

    def _prepared(self, array: Array) -> Array | None:
        grey = array.ndim == 3 and 1 < len(array) <= self.most and array.shape[2] not in (1, 3)
        pictures = [_picture(pixels) for pixels in (array if array.ndim == 4 or grey else array[None])]
        found = [picture for picture in pictures if picture is not None]
        if not found or len(found) < len(pictures):
            return None
        coloured = array.ndim == 3 and len(array) == 3 and not grey
        self.pixels["[N, H, W] as grey images" if grey else "[3, H, W] as one colour image" if coloured else ""] = None
        return np.stack([sample_from_image(picture, self.preprocessing) for picture in found])

    def _refusal(self, item: Any, index: int) -> GpusqError:
        wanted = ", ".join(map(str, self.preprocessing.sample_shape))
        return GpusqError(
            f"the item is {_described(item)}, the model takes float32 [{wanted}] or [N, {wanted}]",
            place=f"{self.name}, item {index}",
            hint=self._advice(item),
        )

    def _advice(self, item: Any) -> str:
        if isinstance(item, str):
            return 'is it a dict of splits? Return one of them, such as dataset["train"]'
        if _is_mapping(item) or isinstance(item, (tuple, list)):
            return 'yield the preprocessed image alone, or under the key "pixel_values"'
        return "give preprocessed images as float arrays or tensors"

    @property
    def remark(self) -> str:
        """What was taken, and how; empty where there was no choice."""
        keys = f"key {' or '.join(map(repr, self.taken))}" if self.taken else ""
        read = " and ".join(filter(None, self.pixels))
        pixels = f"8-bit pixels {read}".rstrip()
        prepared = f"{pixels}, preprocessed as the model declares" if self.pixels else ""
        return ", ".join(filter(None, (keys, prepared)))


def batch_shape(items: Any) -> tuple[int, ...]:
    """Shape [N, ...] of one array of all samples, or of a data loader's first batch; () where it may be a sample's."""
    if hasattr(items, "shape"):
        return tuple(items.shape)
    if not _batch_size(items):
        return ()
    first: Any = next(iter(items), ())
    if _is_mapping(first):
        first = first[min(first.keys(), key=_preference)]
    elif isinstance(first, (tuple, list)):
        first = next(iter(cast("Sequence[Any]", first)), None)
    return tuple(getattr(first, "shape", ()))


def _batch_size(items: Any) -> int:
    """So many samples that each item of a data loader holds at most; 0 where nothing says that items are batches."""
    size: Any = getattr(items, "batch_size", None)
    return size if isinstance(size, int) and hasattr(items, "dataset") else 0


def each(items: Any) -> Iterator[Any]:
    """Items of an iterable, of one dict of arrays, or of a dataset that has a length and numbers alone."""
    if _is_mapping(items):
        values = [items[key] for key in items]
        # A dict of splits has values that are iterated themselves.
        if not any(_array(value) is not None for value in values):
            yield from items
            return
        yield items
    elif hasattr(items, "__iter__") or not hasattr(items, "__len__"):
        yield from items
    else:
        yield from (items[index] for index in range(len(items)))


def _is_mapping(item: Any) -> bool:
    return isinstance(item, Mapping) or (hasattr(item, "keys") and hasattr(item, "__getitem__"))


def _preference(key: Any) -> int:
    name = str(key).lower()
    return KEYS.index(name) if name in KEYS else len(KEYS)


def _array(value: Any) -> Array | None:
    """A tensor is known by its methods, so that torch need not be imported: it may need a gradient, or lie on a GPU.

    None where it is no array of numbers. A dataset isn't asked for all that it has, as numpy would.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    elif not (hasattr(value, "__array__") or type(value) in _PLAIN):
        return None
    try:
        array: Array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    return array if array.dtype.kind in "fiubc" else None


def _is_pixels(value: Any) -> bool:
    array = None if isinstance(value, Image.Image) else _array(value)
    return array is not None and array.dtype == np.uint8


def _picture(pixels: Array) -> Image.Image | None:
    """Of uint8 [H, W], [C, H, W] or [H, W, C], with 1 or 3 channels."""
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if 0 in pixels.shape or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        return None
    return Image.fromarray(np.ascontiguousarray(pixels))


def _described(item: Any) -> str:
    if _is_mapping(item):
        keys = list(item.keys())
        return "a dict of " + some([f"{key}: {_described(item[key])}" for key in keys], 6)
    if isinstance(item, (tuple, list)):
        entries = cast("Sequence[Any]", item)
        kind = "tuple" if isinstance(item, tuple) else "list"
        return f"a {kind} of " + (some([_described(entry) for entry in entries[:8]]) or "nothing")
    if isinstance(item, Image.Image):
        return f"a {item.mode} image {item.width} x {item.height}, and the model declares no preprocessing"
    array = _array(item)
    return type(item).__name__ if array is None else f"{array.dtype} {list(array.shape)}"
