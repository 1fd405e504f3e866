"""The pathway-gradient map, its reductions and its pictures."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pathlens.attribution.pathway_gradient import pathway_gradient
from pathlens.explanation import Explanation, ExplanationOptions, Output, PathwaySource, Reduction, Targets
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway
from tiny_bundle import PREPROCESSING, WITHOUT_PATHWAY, pixels, png, tensor, tiny_bundle, tiny_explainer

pytestmark = pytest.mark.usefixtures("backend")

OUTPUTS = frozenset({Output.MAP, Output.HEATMAP, Output.OVERLAY})


def explain(image: Any, reduction: Reduction = Reduction.NONE, **options: Any) -> Explanation:
    wanted = {"targets": Targets(class_indices=(1,)), "outputs": frozenset({Output.MAP}), **options}
    (result,) = tiny_explainer().explain([image], ExplanationOptions(reduction=reduction, **wanted))
    return result.explanations[0]


def map_of(explanation: Explanation) -> NDArray[np.float32]:
    assert explanation.map is not None
    return explanation.map


def gradient(image: NDArray[np.float32], target: int, pathway: Pathway) -> NDArray[np.float32]:
    batch = torch.from_numpy(image)[None]
    found: NDArray[np.float32] = pathway_gradient(tiny_bundle().classifier, batch, torch.tensor([target]), pathway)[
        0
    ].numpy()
    return found


@pytest.mark.parametrize("target", range(WITHOUT_PATHWAY))
def test_the_map_of_a_transferred_pathway_is_its_pathway_gradient(target: int) -> None:
    found = map_of(explain(tensor(1), targets=Targets(class_indices=(target,))))
    expected = gradient(tensor(1), target, tiny_bundle().bank.transfer([target]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_map_of_a_contribution_pathway_is_its_pathway_gradient() -> None:
    found = map_of(explain(tensor(1), source=PathwaySource.NEURON_MCT, sparsity=0.4))
    scores = neuron_mct(tiny_bundle().classifier, torch.from_numpy(tensor(1))[None], torch.tensor([1]), "channel")
    np.testing.assert_allclose(found, gradient(tensor(1), 1, scores.select(0.4)), atol=1e-5)


def test_the_map_predicts_what_a_small_change_of_the_input_does_to_the_logit() -> None:
    classifier, pathway = tiny_bundle().classifier, tiny_bundle().bank.transfer([1])
    direction, size = tensor(7), 1e-3
    ahead, behind = (
        float(classifier(torch.from_numpy(tensor(1) + sign * size * direction)[None], pathway)[0, 1])
        for sign in (1, -1)
    )
    slope = float((map_of(explain(tensor(1))) * direction).sum())
    assert (ahead - behind) / (2 * size) == pytest.approx(slope, rel=2e-2)


def test_the_signed_maximum_is_the_strongest_channel_with_its_sign() -> None:
    every = map_of(explain(tensor(1)))
    reduced = map_of(explain(tensor(1), Reduction.SIGNED_MAXIMUM))
    assert reduced.shape == (8, 8)
    for row, column in np.ndindex(8, 8):
        assert reduced[row, column] == max(every[:, row, column], key=abs)
    assert reduced.min() < 0 < reduced.max()


def test_the_magnitude_sum_adds_the_magnitudes_of_the_channels() -> None:
    every = map_of(explain(tensor(1)))
    reduced = map_of(explain(tensor(1), Reduction.MAGNITUDE_SUM))
    np.testing.assert_allclose(reduced, np.abs(every).sum(0), rtol=1e-6)


def test_without_reduction_the_map_has_the_shape_of_the_input() -> None:
    assert map_of(explain(tensor(1))).shape == (3, 8, 8)


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 31), (40, 9), (1, 5)])
def test_pictures_have_the_size_of_the_image(reduction: Reduction, height: int, width: int) -> None:
    explanation = explain(png(pixels(0, height, width)), reduction, outputs=OUTPUTS)
    for picture in (explanation.heatmap_png, explanation.overlay_png):
        with Image.open(BytesIO(picture)) as opened:
            assert (opened.format, opened.size) == ("PNG", (width, height))


@pytest.mark.parametrize("reduction", list(Reduction))
def test_the_heatmap_of_a_tensor_has_the_size_of_the_input(reduction: Reduction) -> None:
    explanation = explain(tensor(0), reduction, outputs=frozenset({Output.HEATMAP}))
    with Image.open(BytesIO(explanation.heatmap_png)) as opened:
        assert opened.size == (8, 8)


def test_a_picture_without_reduction_is_drawn_by_the_signed_maximum() -> None:
    pictures = [
        explain(png(pixels(0)), reduction, outputs=OUTPUTS) for reduction in (Reduction.NONE, Reduction.SIGNED_MAXIMUM)
    ]
    assert pictures[0].heatmap_png == pictures[1].heatmap_png
    assert pictures[0].overlay_png == pictures[1].overlay_png
    assert pictures[0].heatmap_png != pictures[0].overlay_png


def test_the_map_of_an_image_is_that_of_its_preprocessed_tensor() -> None:
    picture = pixels(3, 20, 14)
    np.testing.assert_allclose(map_of(explain(png(picture))), map_of(explain(PREPROCESSING.apply(picture))), atol=1e-5)
