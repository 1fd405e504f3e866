"""ONNX operators of image classifiers, opsets 13 to 21, computed with torch and, for shapes, with numpy."""

# Importing a module registers its operators.
from pathlens.onnx_import.operators import (
    activation,
    arithmetic,
    constant,
    convolution,
    linear,
    normalisation,
    pooling,
    reduction,
    resize,
    selection,
    shape,
)
from pathlens.onnx_import.operators.registry import (
    NEWEST_OPSET,
    Implementation,
    Node,
    implementation_of,
    operator,
    supported_operators,
)

__all__ = [
    "NEWEST_OPSET",
    "Implementation",
    "Node",
    "activation",
    "arithmetic",
    "constant",
    "convolution",
    "implementation_of",
    "linear",
    "normalisation",
    "operator",
    "pooling",
    "reduction",
    "resize",
    "selection",
    "shape",
    "supported_operators",
]
