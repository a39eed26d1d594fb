"""A bundle's model, loaded: images or arrays in, arrays out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from gpusq_deploy.api.arguments import PathLike
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from gpusq_deploy.artifacts import BatchRange, Preprocessing
    from gpusq_deploy.bundle import Bundle
    from gpusq_deploy.engines import RuntimeChoice, Session, TensorSpec


class BundleSession:
    """A bundle's model on a runtime; a context manager. Not safe to share between threads.

    Attributes:
        runtime: Which runtime runs it, and why that one.
        preprocessing: How an image becomes an input.
    """

    def __init__(
        self, session: Session, *, runtime: RuntimeChoice, preprocessing: Preprocessing, batch: BatchRange, place: str
    ) -> None:
        self.runtime = runtime
        self.preprocessing = preprocessing
        self._session, self._batch, self._place = session, batch, place

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and type of each input."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and type of each output."""
        return self._session.outputs

    def run(
        self, given: PathLike | Image.Image | Sequence[PathLike | Image.Image] | NDArray[Any]
    ) -> dict[str, NDArray[Any]]:
        """Infer.

        Args:
            given: Images, as files or as Pillow's, one or several: each is resized, cropped and normalised as the
                model declares. Or samples that are prepared already: float [N, C, H, W], or [N, ...] of a model whose
                input is no image.

        Returns:
            The outputs by name, [N, ...] each. More samples than the bundle's largest batch are run in pieces.

        Raises:
            GpusqError: An image can't be read, the samples don't fit the model, or the runtime failed.
        """
        import numpy as np

        samples = self._checked(given) if isinstance(given, np.ndarray) else self._read(given)
        pieces = [self._run_piece(piece) for piece in self._pieces(samples)]
        if len(pieces) == 1:
            return pieces[0]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def close(self) -> None:
        """Give back memory and device."""
        self._session.close()

    def __enter__(self) -> BundleSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, given: PathLike | Image.Image | Sequence[PathLike | Image.Image]) -> NDArray[np.float32]:
        import numpy as np

        from gpusq_deploy.calibration import load_image, sample_from_image

        if not self.preprocessing.is_image:
            shape = ", ".join(map(str, self.preprocessing.sample_shape))
            raise GpusqError(
                "the model's input is no image", place=self._place, hint=f"give an array, float32 [N, {shape}]"
            )
        one = isinstance(given, (str, os.PathLike)) or not isinstance(given, Sequence)
        images = (
            [cast("PathLike | Image.Image", given)] if one else list(cast("Sequence[PathLike | Image.Image]", given))
        )
        if not images:
            raise GpusqError("no image to run", place=self._place, hint="give at least one")
        return np.stack(
            [
                load_image(Path(image), self.preprocessing)
                if isinstance(image, (str, os.PathLike))
                else sample_from_image(image, self.preprocessing)
                for image in images
            ]
        )

    def _checked(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Samples of the model's shape; the model's own shape knows more than the preprocessing."""
        wanted = self.inputs[0].shape[1:]
        fits = samples.ndim == len(wanted) + 1 and all(
            want in (-1, got) for got, want in zip(samples.shape[1:], wanted, strict=False)
        )
        if not fits or not len(samples) or samples.dtype.kind != "f":
            shape = ", ".join("?" if side < 0 else str(side) for side in wanted)
            raise GpusqError(
                f"the array is {samples.dtype} {list(samples.shape)}, the model takes float32 [N, {shape}]",
                place=self._place,
                hint="give prepared samples, or images as files or as Pillow's, which are prepared here",
            )
        return samples

    def _pieces(self, samples: NDArray[Any]) -> Iterator[NDArray[Any]]:
        most = self._batch.maximum
        if len(samples) > most:
            self._require_samples_first()
        for start in range(0, len(samples), most):
            yield samples[start : start + most]

    def _run_piece(self, samples: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Infer once; too few samples for the smallest batch are filled up, and the rest is cut off."""
        import numpy as np

        from gpusq_deploy.calibration import filled

        count, least = len(samples), self._batch.minimum
        if count < least:
            self._require_samples_first()
            samples = filled(samples, least)
        (taken,) = self.inputs
        found = self._session.run({taken.name: np.ascontiguousarray(samples, dtype=taken.dtype)})
        return {name: value[:count] for name, value in found.items()} if count < least else found

    def _require_samples_first(self) -> None:
        """Refuse to put pieces together where the first axis of an output isn't that of the samples."""
        fixed = {-1, self._batch.minimum} if self._batch.static else {-1}
        others = [spec.name for spec in self.outputs if not spec.shape or spec.shape[0] not in fixed]
        if others:
            raise GpusqError(
                f"the samples fill no batch of {self._batch}, and the first axis of {', '.join(others)} isn't theirs",
                place=self._place,
                hint=f"give {self._batch.minimum} to {self._batch.maximum} samples",
            )


def open_bundle_session(bundle: Bundle, runtime: str) -> BundleSession:
    """Load a bundle's model.

    Raises:
        GpusqError: The runtime can't run it here, or a file isn't the one that was built.
    """
    session, choice = load_bundle(bundle, runtime)
    return BundleSession(
        session,
        runtime=choice,
        preprocessing=bundle.manifest.preprocessing,
        batch=bundle.manifest.batch,
        place=str(bundle.path),
    )


def load_bundle(bundle: Bundle, runtime: str) -> tuple[Session, RuntimeChoice]:
    """A bundle's model on a runtime, and why that one; see `open_bundle_session`."""
    from gpusq_deploy.benchmarks import find_subject
    from gpusq_deploy.engines import open_session

    subject = find_subject(bundle.path, runtime)
    session = open_session(subject.path, subject.choice.name, weights=subject.weights, host_code=subject.host_code)
    return session, subject.choice
