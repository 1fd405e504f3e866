"""Files that were exported for one batch size, made to take any."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathlens.onnx_import.graph import Graph, Step
from pathlens.onnx_import.values import Value


def with_free_batch(graph: Graph, batch: int) -> Graph:
    """Let every Reshape whose target begins with the batch size of the file take the batch that is there.

    PyTorch's older exporter fixes the batch unless it is told otherwise, and writes its size into these targets. A
    first size that is equal by chance may give other logits, so they have to be compared with those of ONNX Runtime,
    in batches of other sizes, too.

    Args:
        graph: The graph; it is not changed.
        batch: The size that the file declares.
    """
    constants: dict[str, Value] = dict(graph.constants)
    steps = []
    for step in graph.steps:
        target = constants.get(step.node.inputs[1]) if step.node.operator == "Reshape" else None
        if isinstance(target, np.ndarray) and _begins_with(batch, target, step):
            # What is left over after the other sizes is the batch; where one of them is left open, the first is kept.
            first = 0 if -1 in target else -1
            name = f"{step.node.inputs[1]} with a free batch"
            constants[name] = np.concatenate([np.array([first], target.dtype), target[1:]])
            inputs = (step.node.inputs[0], name, *step.node.inputs[2:])
            attributes = {**step.node.attributes, "allowzero": 0}
            node = dataclasses.replace(step.node, inputs=inputs, attributes=attributes)
            steps.append(Step(node, step.module, step.implementation))
        else:
            steps.append(step)
    return Graph(tuple(steps), constants)


def _begins_with(batch: int, target: NDArray[Any], step: Step) -> bool:
    # Otherwise a 0 keeps the size that is there, and goes well with a free batch.
    is_empty = 0 in target and bool(step.node.attributes.get("allowzero", 0))
    return target.size > 1 and bool(target[0] == batch) and not is_empty
