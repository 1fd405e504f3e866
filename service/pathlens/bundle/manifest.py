"""The manifest of a bundle: `bundle.json`, checked against this schema whenever it is read."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pathlens.explanation import Ablation, Granularity, PathwaySource

SCHEMA_VERSION: Literal[1] = 1

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
"""What a model may be called: TorchServe makes URLs and file names of it."""
LONGEST_NAME = 100

_SHA256 = r"^[0-9a-f]{64}$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TransferFiguresPart(_Part):
    """As `pathlens.explanation.TransferFigures`."""

    member_images: int = Field(ge=0)
    other_images: int = Field(ge=0)
    agreement: float | None
    mean_increase: float | None
    mean_drop: float | None
    forcing: float | None
    leak: float | None
    leak_reference: float | None


class ClassPathwayPart(_Part):
    """A class with a stored pathway; as `pathlens.explanation.ClassPathwayStatistics`."""

    class_index: int = Field(ge=0)
    image_count: int = Field(ge=1)
    sparsity_sum: float
    mean_instance_iou: float | None
    figures: TransferFiguresPart
    random_control: TransferFiguresPart


class BankPart(_Part):
    """The class-pathway bank without its counts, which are in `bank.safetensors`."""

    granularity: Granularity
    ablation: Ablation
    threshold: float = Field(gt=0, le=1)
    source: PathwaySource
    instance_sparsity: float = Field(ge=0, lt=1)
    minimum_images: int = Field(ge=1)
    classes: tuple[ClassPathwayPart, ...]


class FitPart(_Part):
    """How the bundle was fitted."""

    images: int
    held_out_images: int
    skipped_images: int
    seed: int
    pathlens_version: str
    torch_version: str


class Manifest(_Part):
    """Everything about a bundle but its tensors."""

    schema_version: Literal[1]
    name: str = Field(pattern=f"^{NAME}$", max_length=LONGEST_NAME)
    classifier_sha256: str = Field(pattern=_SHA256)
    files: dict[str, str]
    labels: tuple[str, ...]
    preprocessing: dict[str, Any]
    bank: BankPart
    fit: FitPart
