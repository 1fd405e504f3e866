"""Activation functions that a file spells out in several nodes, found again.

Exporters write SiLU as x · sigmoid(x), and for older opsets GELU in six nodes. Left so, these classifiers would have no
taps. What a few nodes compute from one value is a function of one number, so it is recognised by its values, however it
is written.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pathlens.errors import CaptureError
from pathlens.onnx_import.graph import Graph, Step
from pathlens.onnx_import.operators import Node
from pathlens.onnx_import.values import Value

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "hardswish": functional.hardswish,
    "gelu": functional.gelu,
    "gelu by tanh": lambda values: functional.gelu(values, approximate="tanh"),
    "mish": functional.mish,
}
_POINTWISE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Identity"),
        *("Erf", "Tanh", "Sigmoid", "HardSigmoid", "Softplus", "Clip", "Relu", "Min", "Max"),
    }
)
_LAST = frozenset({"Mul", "Div"})
_MOST_NODES = 12
_TOLERANCE = 1e-5
# With four dimensions, as constants may have that many. GELU by tanh is up to 5e-4 away from GELU in this range.
# Far from 0, a bound shows that is no part of the activation function.
_GRID = torch.cat([torch.linspace(-8, 8, 1001), torch.tensor([-80.0, -20.0, 20.0, 80.0])]).view(1, 1, 1, -1)


def join_activations(graph: Graph, output: str) -> Graph:
    """Put one step in the place of nodes that compute SiLU, hardswish, GELU or Mish.

    Args:
        graph: The graph.
        output: Name of the value that it returns.
    """
    makers = {name: position for position, step in enumerate(graph.steps) for name in step.node.outputs}
    users: dict[str, set[int]] = {output: {len(graph.steps)}}
    for position, step in enumerate(graph.steps):
        for name in step.node.inputs:
            users.setdefault(name, set()).add(position)
    steps: dict[int, Step] = dict(enumerate(graph.steps))
    for last in reversed(range(len(graph.steps))):
        if last in steps and graph.steps[last].node.operator in _LAST:
            for nodes, source in _candidates(graph, last, makers, users):
                if (activation := _recognised(graph, nodes, source)) is not None:
                    steps[last] = _joined(graph.steps[last], source, activation)
                    for position in nodes[:-1]:
                        del steps[position]
                    break
    return Graph(tuple(step for _, step in sorted(steps.items())), graph.constants)


def _candidates(
    graph: Graph, last: int, makers: dict[str, int], users: dict[str, set[int]]
) -> Sequence[tuple[list[int], str]]:
    """Return the sets of nodes that compute the result of node `last` from one value, and the name of that value."""
    nodes, found = [last], []
    open_values = _variable_inputs(graph, last)
    while open_values and len(nodes) < _MOST_NODES:
        if len(open_values) == 1:
            found.append((sorted(nodes), next(iter(open_values))))
        latest = max(open_values, key=lambda name: makers.get(name, -1))
        maker = makers.get(latest, -1)
        if maker < 0 or graph.steps[maker].node.operator not in _POINTWISE or not users[latest] <= set(nodes):
            break
        nodes.append(maker)
        open_values = (open_values - {latest}) | _variable_inputs(graph, maker)
    return found


def _variable_inputs(graph: Graph, position: int) -> set[str]:
    return {name for name in graph.steps[position].node.inputs if name and name not in graph.constants}


def _recognised(graph: Graph, nodes: Sequence[int], source: str) -> str | None:
    values: dict[str, Value] = {**graph.constants, source: _GRID}
    try:
        with torch.no_grad():
            for step in (graph.steps[position] for position in nodes):
                results = step.run([values.get(name) for name in step.node.inputs])
                values.update(zip(step.node.outputs, results, strict=False))
    except CaptureError:
        return None
    result = values[graph.steps[nodes[-1]].node.outputs[0]]
    if not isinstance(result, Tensor) or result.shape != _GRID.shape or result.dtype != _GRID.dtype:
        return None
    for name, activation in _ACTIVATIONS.items():
        if torch.allclose(result, activation(_GRID), rtol=_TOLERANCE, atol=_TOLERANCE):
            return name
    return None


def _joined(last: Step, source: str, activation: str) -> Step:
    node = Node(last.node.name, activation, "", last.node.opset, (source,), last.node.outputs, {})
    function = _ACTIVATIONS[activation]

    def implementation(_node: Node, inputs: Sequence[Value | None]) -> Value:
        (values,) = inputs
        assert isinstance(values, Tensor)  # noqa: S101 - the source depends on the images
        return function(values)

    return Step(node, last.module, implementation)
