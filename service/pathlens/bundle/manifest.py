"""The manifest of a bundle: `bundle.json`, checked against this schema whenever it is read."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from pathlens.description import ClassPathwaySelection
from pathlens.explainer.backend import BackendName
from pathlens.explanation import Ablation, Granularity, PathwaySource
from pathlens.generator.generator import LARGEST_WIDTH

SCHEMA_VERSION: Literal[2] = 2

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
"""What a model may be called: TorchServe makes URLs and file names of it."""
LONGEST_NAME = 100

_SHA256 = r"^[0-9a-f]{64}$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TransferFiguresPart(_Part):
    """As `pathlens.description.TransferFigures`."""

    member_images: int = Field(ge=0)
    other_images: int = Field(ge=0)
    agreement: float | None
    mean_increase: float | None
    mean_drop: float | None
    forcing: float | None
    leak: float | None
    leak_reference: float | None


class MaskFiguresPart(_Part):
    """As `pathlens.description.MaskFigures`."""

    sparsity: float = Field(ge=0, le=1)
    figures: TransferFiguresPart
    random_control: TransferFiguresPart


class ClassPathwayPart(_Part):
    """A class with a stored pathway; as `pathlens.description.ClassPathwayStatistics`."""

    class_index: int = Field(ge=0)
    image_count: int = Field(ge=1)
    sparsity_sum: float
    selection: ClassPathwaySelection
    mean_instance_iou: float | None
    within_class_iou: float | None
    cross_class_iou: float | None
    stored: MaskFiguresPart
    by_frequency: MaskFiguresPart


class BankPart(_Part):
    """The class-pathway bank without its tensors, which are in `bank.safetensors`.

    `too_few` says how many images were predicted as each class that has no pathway for lack of them.
    """

    granularity: Granularity
    ablation: Ablation
    threshold: float = Field(gt=0, le=1)
    source: PathwaySource
    instance_sparsity: float = Field(ge=0, lt=1)
    minimum_images: int = Field(ge=1)
    classes: tuple[ClassPathwayPart, ...]
    too_few: dict[NonNegativeInt, NonNegativeInt]


class GeneratorPart(_Part):
    """The pathway generator without its parameters, which are in `generator.safetensors`."""

    granularity: Granularity
    width: int = Field(ge=1, le=LARGEST_WIDTH)
    parameters: int = Field(ge=1)


class ReferencePart(_Part):
    """How many held-out explanations of each source there are; their figures are in `reference.safetensors`."""

    images: dict[PathwaySource, PositiveInt] = Field(min_length=1)


class FitPart(_Part):
    """How the bundle was fitted; `settings` are those of the fit, as JSON holds them."""

    images: int
    held_out_images: int
    skipped_images: int
    seed: int
    pathlens_version: str
    torch_version: str
    settings: dict[str, Any]


class Manifest(_Part):
    """Everything about a bundle but its tensors."""

    schema_version: Literal[2]
    name: str = Field(pattern=f"^{NAME}$", max_length=LONGEST_NAME)
    classifier_sha256: str = Field(pattern=_SHA256)
    files: dict[str, str]
    labels: tuple[str, ...]
    preprocessing: dict[str, Any]
    bank: BankPart
    generator: GeneratorPart | None
    # Bundles of the same schema that were fitted before there was one are as good as ever.
    reference: ReferencePart | None = None
    # Not written where it is "torch": such a bundle is the same as one of a time when there was nothing else.
    backend: BackendName = "torch"
    fit: FitPart
