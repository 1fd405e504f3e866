"""From a graph of ATen operators to an ONNX model, the same bytes for the same graph."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from pathlens.errors import ExportError
from pathlens.onnx_export.lowerings import lowerings
from pathlens.onnx_export.signature import BATCH
from pathlens.onnx_export.simplification import SimplifiedGraph

if TYPE_CHECKING:
    import onnx

DEFAULT_OPSET = 18
"""Opset of the exported graphs unless another is asked for: the oldest that can be written; most runtimes read it."""

LARGEST_WEIGHTS = 2**31 - 2**24
"""Bytes of constants: the format cannot hold more than 2 GiB in one file, operators, names and metadata included."""

PRODUCER = "pathlens"


def onnx_model(
    graph: SimplifiedGraph, inputs: Mapping[str, Tensor], outputs: Sequence[str], opset: int
) -> "onnx.ModelProto":
    """Write a graph as an ONNX model.

    Args:
        graph: Of ATen operators, with one input for each of `inputs` and one output for each of `outputs`.
        inputs: An example of every input, in order, by the name that it gets.
        outputs: Names of the outputs in order.
        opset: Version of the ONNX operators.

    Raises:
        ExportError: If an operator cannot be written, or the model is too large for one file.
    """
    import onnx
    from onnx_ir import serde

    program = _export(graph.module, tuple(inputs.values()))
    with _quiet():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            custom_translation_table=lowerings(),
            verbose=False,
        )
    assert exported is not None  # noqa: S101
    model: Any = exported.model
    _clean(model)
    _name_constants(model, graph.names)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    if size > LARGEST_WEIGHTS:
        raise ExportError(
            f"The graph would hold {size / 2**30:.1f} GiB of weights and masks; an ONNX file holds at most 2 GiB. "
            "Export one source only, or a bundle of channels (--granularity channel)."
        )
    proto = serde.serialize_model(model)
    # The exporter writes the newest version of the format, which older runtimes refuse whatever the opset.
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _export(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    shapes = tuple({0: Dim(BATCH, min=1)} for _ in inputs)
    with _quiet():
        return torch.export.export(graph, inputs, dynamic_shapes=shapes, strict=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PyTorch's exporter from talking about packages that are not needed and from warning about its own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _clean(model: Any) -> None:
    """Remove what tells of the exporter and of the machine, and what follows from the rest."""
    import onnx_ir

    graph = model.graph
    model.producer_name, model.producer_version, graph.name = PRODUCER, None, PRODUCER
    outer = {*graph.inputs, *graph.outputs}
    for value in outer:
        value.shape = onnx_ir.Shape([BATCH, *value.shape[1:]])
    inner = set(graph.initializers.values())
    described = [model, graph]
    for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
        described.append(node)
        inner.update(node.outputs)
    for value in inner - outer:
        if value.const_value is None:
            value.type = value.shape = None
    for item in (*described, *outer, *inner):
        item.doc_string = None
        item.metadata_props.clear()


def _name_constants(model: Any, names: Mapping[str, str]) -> None:
    """Name the constants after the weights that they are made of, as far as the names are free."""
    constants = dict(model.graph.initializers)
    taken = {value.name for node in model.graph for value in node.outputs} | {item.name for item in model.graph.inputs}
    taken |= constants.keys() - names.keys()
    for attribute, name in names.items():
        if attribute in constants:
            free = name
            while free in taken:
                free += "'"
            taken.add(free)
            constants[attribute].name = free
