"""Whether a map is another one because the graph is, or because the image lies at a kink.

The gradient of a network jumps where an input of an activation function crosses a kink, such as ReLU's at 0, or where
two inputs of a maximum are the same. Where that is within rounding, float32 falls on either side by chance, and no two
programs that compute in float32 have the same map. The test is to leave the kink: next to it, an equal graph has the
map that PyTorch has in float64, and a damaged one has not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pathlens.attribution.pathway_gradient import run_pathway
from pathlens.explanation import PathwaySource
from pathlens.onnx_export import signature
from pathlens.onnx_export.measures import Measure
from pathlens.onnx_export.session import ExplainerSession
from pathlens.onnx_export.subject import ExplainedClassifier
from pathlens.onnx_export.torch_explanation import TorchExplanation, explain_with_torch
from pathlens.pathways.pathway import Pathway

NUDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3)
"""Movements of an image, as shares of its largest value: from what float32 rounds to half a step of an 8-bit pixel."""
_DIRECTIONS = 8
"""Ways in which an image is moved by each of them."""
_EQUAL = Measure.MAP.tolerance / 10
"""Distance of maps next to the image: so far inside the tolerance that no map is equal by being just not beyond it."""


@dataclass(frozen=True)
class MapBeyond:
    """A map that is not equal, and what becomes of it next to the image. All distances are relative L2.

    Attributes:
        image: Its name.
        source: Of the pathway.
        distance: From ONNX Runtime to PyTorch in float32.
        onnx_from_float64: From ONNX Runtime to PyTorch in float64, by the same pathway.
        torch_from_float64: From PyTorch in float32 to PyTorch in float64.
        same_pathway: Whether ONNX Runtime took the same top class and mask; if not, that is why its map is another.
        nudge: The first of `NUDGES` by which the image leaves the kink; 0 if ONNX Runtime is right where it is and
            PyTorch's float32 is not; None if there is no kink.
    """

    image: str
    source: PathwaySource
    distance: float
    onnx_from_float64: float
    torch_from_float64: float
    same_pathway: bool
    nudge: float | None

    @property
    def at_kink(self) -> bool:
        """Whether the map is another one because of rounding alone."""
        return self.nudge is not None


class KinkSearch:
    """Looks at maps that are not equal.

    Args:
        session: The explainer.
        subject: Classifier, class pathways and generator of the bundle.
    """

    def __init__(self, session: ExplainerSession, subject: ExplainedClassifier) -> None:
        self._session, self._subject = session, subject

    def examine(
        self,
        name: str,
        source: PathwaySource,
        row: int,
        images: Tensor,
        actual: Mapping[str, Tensor],
        explanation: TorchExplanation,
    ) -> MapBeyond:
        """Look at one map.

        Args:
            name: Of the image.
            source: Of the pathway.
            row: Of the image in its batch.
            images: The batch, preprocessed, float32 [B, C, H, W].
            actual: The outputs of the explainer for the batch.
            explanation: What PyTorch makes of the batch.
        """
        expected = explanation.outputs
        exact = self._exact_maps(
            images[[row]], expected[signature.TOP_CLASS][[row]], explanation.pathways[source][[row]]
        )
        output = signature.map_output(source)
        onnx, own = actual[output][[row]], expected[output][[row]]
        distance, from_onnx, from_torch = (
            float(Measure.MAP.distances(one, other)) for one, other in ((onnx, own), (onnx, exact), (own, exact))
        )
        same = bool(_same_pathway(source, actual, expected)[row])
        nudge = None
        if same:
            here = {key: values[[row]] for key, values in expected.items()}
            nudge = 0.0 if from_onnx <= _EQUAL else self._leave(source, images[[row]], exact, here, distance)
        return MapBeyond(name, source, distance, from_onnx, from_torch, same, nudge)

    def _leave(
        self, source: PathwaySource, image: Tensor, exact: Tensor, own: Mapping[str, Tensor], distance: float
    ) -> float | None:
        """Return the first nudge that takes an image away from a kink, None if there is none."""
        output, draw = signature.map_output(source), torch.Generator().manual_seed(0)
        jump = 0.0
        for nudge in NUDGES:
            noise = torch.randn((_DIRECTIONS, *image.shape[1:]), generator=draw)
            moved = image + nudge * image.abs().max() * noise
            actual = self._session.run(moved)
            explanation = explain_with_torch(self._subject, moved, (source,))
            maps = self._exact_maps(moved, explanation.outputs[signature.TOP_CLASS], explanation.pathways[source])
            equal = Measure.MAP.distances(actual[output], maps) <= _EQUAL
            jumps = Measure.MAP.distances(maps, exact.expand_as(maps))
            # A map moves with its pathway as well, and that is no jump.
            steady = _same_pathway(source, explanation.outputs, own)
            jump = max(jump, *jumps[steady].tolist(), 0.0)
            # At the image each of the two may have jumped, so PyTorch's own jump must be half their distance at least.
            left = equal & _same_pathway(source, actual, explanation.outputs)
            if left.any() and 2 * jump >= distance:
                return nudge
        return None

    def _exact_maps(self, images: Tensor, top_class: Tensor, pathway: Pathway) -> Tensor:
        return run_pathway(self._subject.classifier.in_float64, images.double(), top_class, pathway).gradient


def _same_pathway(source: PathwaySource, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Tensor:
    """Tell of every image whether both explain the same class by the same pathway, bool [B]."""
    top_class, mask = signature.TOP_CLASS, signature.mask_output(source)
    same_mask = Measure.ELEMENTS.distances(actual[mask], expected[mask]) == 0
    return same_mask & (actual[top_class] == expected[top_class])
