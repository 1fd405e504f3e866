"""What an exported explainer says of itself: key by key in the metadata of the ONNX file, each value as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import onnx
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pathlens.classifier.preprocessing import Preprocessing
from pathlens.errors import ExplainerFileError
from pathlens.explanation import Ablation, Granularity, PathwaySource
from pathlens.onnx_export.subject import ExplainedClassifier
from pathlens.pathways.pathway import mask_shape
from pathlens.version import __version__

SCHEMA_VERSION: Literal[1] = 1

_VERSION_KEY = "schema_version"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TapMetadata(_Part):
    """A tap and its place in the masks of the explainer.

    Attributes:
        name: As `Tap.name`.
        activation: Name of the activation function.
        shape: Of its output, without the batch.
        mask_shape: Of its part of a mask: [channels], or `shape` if a neuron is a unit.
        offset: Where its part of a mask begins.
    """

    name: str
    activation: str
    shape: tuple[int, ...]
    mask_shape: tuple[int, ...]
    offset: int


class ExplainerMetadata(_Part):
    """What a program must know of an explainer beside the graph.

    Attributes:
        schema_version: Of this metadata.
        name: Of the bundle.
        labels: One per class.
        preprocessing: From pixels to the input, as `Preprocessing.to_json` writes it.
        taps: In the order of the masks.
        granularity: What counts as one neuron.
        ablation: What stands in for removed neurons.
        sources: Of the pathways that the graph computes.
        classifier_sha256: `CapturedClassifier.fingerprint`.
        bundle_sha256: Of the bundle it was made from.
        pathlens_version: Of the pathlens that made it.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    labels: tuple[str, ...]
    preprocessing: dict[str, Any]
    taps: tuple[TapMetadata, ...]
    granularity: Granularity
    ablation: Ablation
    sources: tuple[PathwaySource, ...] = Field(min_length=1)
    classifier_sha256: str
    bundle_sha256: str
    pathlens_version: str

    @field_validator("preprocessing")
    @classmethod
    def _check_preprocessing(cls, values: dict[str, Any]) -> dict[str, Any]:
        Preprocessing.from_json(values)
        return values

    @classmethod
    def of(
        cls,
        subject: ExplainedClassifier,
        labels: Sequence[str],
        preprocessing: Preprocessing,
        name: str,
        bundle_sha256: str,
        sources: Sequence[PathwaySource],
    ) -> Self:
        """Describe the explainer of a fitted classifier.

        Args:
            subject: Classifier, class pathways and generator.
            labels: One per class.
            preprocessing: From pixels to the classifier's input.
            name: Of the bundle.
            bundle_sha256: Of the bundle.
            sources: Of the pathways that the graph computes.
        """
        granularity = subject.bank.granularity
        taps, offset = [], 0
        for tap in subject.classifier.taps:
            shape = mask_shape(tap, granularity)
            taps.append(
                TapMetadata(name=tap.name, activation=tap.activation, shape=tap.shape, mask_shape=shape, offset=offset)
            )
            offset += math.prod(shape)
        return cls(
            name=name,
            labels=tuple(labels),
            preprocessing=preprocessing.to_json(),
            taps=tuple(taps),
            granularity=granularity,
            ablation=subject.bank.replacement.ablation,
            sources=tuple(sources),
            classifier_sha256=subject.classifier.fingerprint,
            bundle_sha256=bundle_sha256,
            pathlens_version=__version__,
        )

    def to_properties(self) -> dict[str, str]:
        """Return the properties of the ONNX file: one JSON text per attribute."""
        return {key: json.dumps(value) for key, value in self.model_dump(mode="json").items()}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> Self:
        """Read what `to_properties` wrote; properties that others have added are left alone.

        Raises:
            ValueError: If a property is missing, no JSON or impossible.
        """
        values = {key: json.loads(properties[key]) for key in cls.model_fields if key in properties}
        return cls.model_validate_json(json.dumps(values))


def read_metadata(path: Path) -> ExplainerMetadata:
    """Read what an exported explainer says of itself.

    Raises:
        ExplainerFileError: If the file is no ONNX file, or none that `pathlens export` wrote.
    """
    return metadata_of(read_graph(path), path)


def read_graph(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        ExplainerFileError: If it cannot be read or is none.
    """
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise ExplainerFileError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # protobuf's own errors, which this room must not import.
        raise ExplainerFileError(f"{path} is not an ONNX file, or not all of one: {error}.") from error
    if not model.ir_version or not model.graph.node:
        raise ExplainerFileError(f"{path} is not an ONNX file: it holds no graph.")
    return model


def metadata_of(model: onnx.ModelProto, path: Path) -> ExplainerMetadata:
    """Return what a graph says of itself.

    Args:
        model: Read by `read_graph`.
        path: Its file, for the error.

    Raises:
        ExplainerFileError: If it is none that `pathlens export` wrote.
    """
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if not {_VERSION_KEY, "classifier_sha256", "pathlens_version"} <= properties.keys():
        raise ExplainerFileError(
            f"{path} is an ONNX file, but no explainer: it lacks the metadata that `pathlens export` writes."
        )
    if properties[_VERSION_KEY] != str(SCHEMA_VERSION):
        raise ExplainerFileError(
            f"{path} has metadata of schema version {properties[_VERSION_KEY]}; this pathlens reads version "
            f"{SCHEMA_VERSION}: export it again."
        )
    try:
        return ExplainerMetadata.from_properties(properties)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ExplainerFileError(f"The metadata of {path} is damaged: {problems}.") from error
    except (ValueError, RecursionError) as error:
        raise ExplainerFileError(f"The metadata of {path} is damaged: {error}.") from error
