"""Real classifiers are explained by their graphs as by PyTorch, image by image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from exported_graphs import drawn_subject
from fixture_data import CLASSIFIERS, FOLDER, cifar, needs_fixtures, networks
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.explanation import PathwaySource
from pathlens.onnx_export.export import export_explainer
from pathlens.onnx_export.measures import Measure
from pathlens.onnx_export.metadata import ExplainerMetadata
from pathlens.onnx_export.session import ExplainerSession
from pathlens.onnx_export.verification import verify
from real_captures import real

IMAGES = 5


def photographs(name: str) -> Tensor:
    """Preprocessed images."""
    if name == "cifar_resnet20":
        pixels = cifar()[0][:IMAGES]
    else:
        files = sorted((FOLDER / "imagenet_val").glob("*.JPEG"))[:IMAGES]
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files])
    images: Tensor = networks().preprocess(name, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    return images


@needs_fixtures
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_real_classifier_is_explained_as_by_torch(name: str, tmp_path: Path) -> None:
    subject = drawn_subject(real(name), with_generator=False)
    side, labels = CLASSIFIERS[name][1], tuple(map(str, range(subject.classifier.classes)))
    preprocessing = Preprocessing(side, side, mean=(0.5,) * 3, std=(0.5,) * 3)
    sources = (PathwaySource.TRANSFERRED,)
    metadata = ExplainerMetadata.of(subject, labels, preprocessing, name, "0" * 64, sources)
    path = tmp_path / "explainer.onnx"
    export_explainer(subject, metadata, path)
    batch = photographs(name)
    found = verify(ExplainerSession(path, 1), subject, metadata, [([*map(str, range(len(batch)))], batch)])
    assert found.images == IMAGES
    assert [output.output for output in found.outputs if not output.equal and output.measure is not Measure.MAP] == []
    assert [beyond for beyond in found.maps_beyond if not beyond.at_kink] == []
