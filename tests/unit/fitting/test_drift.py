"""Corrupted images raise the drift alert, and clean ones do not: a real classifier on real images."""

from dataclasses import replace

import numpy as np
import pytest

from corruptions import Pixels, corrupted
from drift_statistic import is_drift, ranks_of
from fixture_data import cifar, needs_fixtures
from pathlens.bundle.store import Bundle
from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.explanation import ExplanationOptions, Output, PathwaySource
from pathlens.fitting.fit import fit
from pathlens.fitting.subject import FitSubject
from real_captures import real
from small_fits import BY_FREQUENCY

pytestmark = needs_fixtures

LABELS = tuple("0123456789")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("drift")
    np.savez(folder / "images.npz", images=cifar("train")[0][::40])
    subject = FitSubject(
        real("cifar_resnet20"),
        Preprocessing(32, 32, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        LABELS,
        ImageSource(folder / "images.npz"),
    )
    fitted = fit(subject, replace(BY_FREQUENCY, held_out=0.5, largest_tested=40, batch_size=64), folder / "unfinished")
    assert fitted is not None
    return fitted


def alerts(bundle: Bundle, images: Pixels) -> set[str]:
    """Tell the statistics of NeuronMCT pathways that would raise the alert."""
    options = ExplanationOptions(source=PathwaySource.NEURON_MCT, outputs=frozenset({Output.FAITHFULNESS}))
    results = bundle.explainer().explain(list(images), options)
    ranks = ranks_of(result.explanations[0] for result in results)
    assert all(len(values) == len(images) for values in ranks.values())
    return {statistic for statistic, values in ranks.items() if is_drift(values)}


def test_clean_images_raise_no_alert_and_corrupted_ones_do(bundle: Bundle) -> None:
    images = cifar("test")[0][::7]
    assert alerts(bundle, images) == set()
    assert "class_pathway_iou" in alerts(bundle, corrupted(images, "Gaussian noise", 3))
