"""The graphs of an explained classifier: the whole explanation in one, or its stages one by one."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pathlens.explanation import PathwaySource
from pathlens.onnx_export import signature
from pathlens.onnx_export.differentiation import differentiate
from pathlens.onnx_export.explanation_network import ExplanationNetwork, Outputs
from pathlens.onnx_export.graph_file import DEFAULT_OPSET, onnx_model
from pathlens.onnx_export.refusal import refusals
from pathlens.onnx_export.simplification import simplify
from pathlens.onnx_export.stage_graphs import ServingGraphs
from pathlens.onnx_export.subject import ExplainedClassifier

if TYPE_CHECKING:
    import onnx

EXAMPLES = 3
"""Images in the example batch: a number that the sizes of a network rarely are, and not 1, which broadcasts."""


def explanation_graph(
    subject: ExplainedClassifier, sources: Sequence[PathwaySource], opset: int = DEFAULT_OPSET
) -> "onnx.ModelProto":
    """Write the whole explanation of the top class as one ONNX graph.

    Args:
        subject: What is explained.
        sources: TRANSFERRED, GENERATED or both.
        opset: Version of the ONNX operators.

    Raises:
        ExportError: If an operator's gradient cannot be exported, or the graph is too large for one file.
    """
    with refusals(subject.classifier.program):
        network = ExplanationNetwork(subject)
        return _graph(network, network.explain(sources), _image(subject), opset)


def serving_graphs(subject: ExplainedClassifier) -> ServingGraphs:
    """Write the stages of an explanation as ONNX graphs.

    Args:
        subject: What is explained.

    Raises:
        ExportError: If an operator's gradient cannot be exported, or a graph is too large for one file.
    """
    with refusals(subject.classifier.program):
        network = ExplanationNetwork(subject)
        image = _image(subject)
        inputs = {
            **image,
            signature.TARGET: torch.zeros(EXAMPLES, dtype=torch.int64),
            signature.MASK: torch.ones(EXAMPLES, network.neurons, dtype=torch.bool),
        }
        if network.replacement_size:
            inputs[signature.REPLACEMENT] = torch.zeros(EXAMPLES, network.replacement_size)
        generation = None
        if subject.generator is not None:
            generation = _graph(network, network.generate, image).SerializeToString(deterministic=True)
        return ServingGraphs(
            prediction=_graph(network, network.predict, image).SerializeToString(deterministic=True),
            generation=generation,
            pathway=_graph(network, network.run, inputs).SerializeToString(deterministic=True),
        )


def _image(subject: ExplainedClassifier) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {signature.IMAGE: torch.rand(EXAMPLES, *subject.classifier.input_shape, generator=generator)}


def _graph(
    network: ExplanationNetwork,
    function: Callable[..., Outputs],
    inputs: Mapping[str, Tensor],
    opset: int = DEFAULT_OPSET,
) -> "onnx.ModelProto":
    outputs: list[str] = []

    def values(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = function(*tensors)
        outputs[:] = results
        return tuple(results.values())

    graph = simplify(differentiate(values, list(inputs.values())), network.tensors)
    return onnx_model(graph, inputs, outputs, opset)
