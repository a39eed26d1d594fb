"""What the zoo has of each model: where it comes from, how it is compressed and measured, and by which commands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from gpusq_deploy.benchmarks.peers.zoo_models import PACKAGES, SVTR_FACTORY, Package

Variant = Literal["INT8", "2:4 INT8, second-order", "2:4 INT8, reconstruction"]
VARIANTS: tuple[Variant, ...] = ("INT8", "2:4 INT8, second-order", "2:4 INT8, reconstruction")

DIGITS = Package(
    "scikit-learn==1.9.1",
    "sklearn",
    "datasets/data/digits.csv.gz",
    "no weights: trained here; scikit-learn is BSD-3-Clause, of the scans it names the source (UCI) and no licence",
    "COPYING and datasets/descr/digits.rst of the wheel",
)


class Card(NamedTuple):
    """One model. `key` names its files; `fitted` and `judged` are folders below the working folder."""

    name: str
    key: str
    package: Package
    fitted: str
    judged: str
    task: Literal["retrieval", "classification", "words"]
    data: str
    measures: tuple[str, ...]
    arch: str | None = None
    calibration: tuple[str, ...] = ()

    def files(self) -> dict[Variant, str]:
        """The bundle of each variant."""
        ends = ("int8", "second-order", "reconstructed")
        return {variant: f"{self.key}-{end}.gpusq" for variant, end in zip(VARIANTS, ends, strict=True)}

    def commands(self) -> dict[str, tuple[str, ...]]:
        """What is run, in order, by the file that it makes: the command's name without `gpusq-`, and its words."""
        arch = () if self.arch is None else ("--arch", self.arch)
        int8, pruned, reconstructed = self.files().values()
        calibrated = ("--calib", self.fitted, *self.calibration, "--target", "none", "--out")
        dense, sparse = (f"{self.key}{end}.pt" for end in ("", "-24"))
        return {
            int8: ("build", dense, *arch, "--int8", *calibrated, int8),
            pruned: ("build", dense, *arch, "--int8", "--sparse", "--prune", "second-order", *calibrated, pruned),
            sparse: ("compress", dense, *arch, "--data", self.fitted, "--stage", "reconstruct", "--out", sparse),
            reconstructed: ("build", sparse, *arch, "--int8", "--sparse", *calibrated, reconstructed),
        }

    def evaluation(self, bundles: Iterable[str]) -> tuple[str, ...]:
        """gpusq-eval's words, but for words on pictures: it has no task for them."""
        task = ("--task", "retrieval") if self.task == "retrieval" else ()
        return ("eval", f"{self.key}.pt", *bundles, "--data", self.judged, *task, "--resume", f"{self.key}.jsonl")


_CROPS = "120 crops of 30 photographs (10 of scikit-image and scikit-learn, foolbox's 20 of ImageNet); fitted on others"
_FEATURES = ("retrieval mAP", "recall@1")
_SIXTY_FOUR = ("--calib-samples", "64")

CARDS: tuple[Card, ...] = (
    Card(
        name="SVTRv2-B",
        key="svtrv2",
        package=PACKAGES["SVTRv2-B"],
        fitted="words/fit",
        judged="words/judged",
        task="words",
        data="200 rendered words and numbers, other words and fonts than it was fitted on",
        measures=("exact words", "character error rate"),
        arch=SVTR_FACTORY,
        calibration=("--calib-samples", "32"),
    ),
    Card(
        name="DINOv2 ViT-S/14",
        key="dinov2",
        package=PACKAGES["DINOv2 ViT-S/14"],
        fitted="photographs/fit",
        judged="photographs/judged",
        task="retrieval",
        data=_CROPS,
        measures=_FEATURES,
        calibration=_SIXTY_FOUR,
    ),
    Card(
        name="ViT on scanned digits",
        key="digits",
        package=DIGITS,
        fitted="digits/train",
        judged="digits/heldout",
        task="classification",
        data="359 held-out scans; trained for 8 epochs on 1,438 others",
        measures=("top-1",),
        calibration=_SIXTY_FOUR,
    ),
    Card(
        name="CLIP ViT-B/16, image tower",
        key="clip",
        package=PACKAGES["CLIP ViT-B/16, image tower"],
        fitted="photographs/fit",
        judged="photographs/judged",
        task="retrieval",
        data=_CROPS,
        measures=_FEATURES,
        calibration=_SIXTY_FOUR,
    ),
)
