"""ONNX files for tests: small networks as PyTorch's two exporters write them, and graphs made by hand."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.onnx import TrainingMode

from small_networks import CLASSES, SIDE, images, original

Exporter = Literal["legacy", "dynamo"]
"""PyTorch's exporters: by TorchScript, and by `torch.export`."""

EXPORTERS: tuple[Exporter, ...] = ("legacy", "dynamo")
OPSETS: dict[Exporter, int] = {"legacy": 17, "dynamo": 20}
"""What to export for where nothing is said."""


def export(
    network: nn.Module,
    exporter: Exporter = "legacy",
    opset: int | None = None,
    example: Tensor | None = None,
    free_batch: bool = True,
) -> bytes:
    """Export a network, in the mode it is in, as one of PyTorch's exporters does it.

    Without `free_batch`, the file is for batches as large as the example.
    """
    opset, example, file = opset or OPSETS[exporter], images(2) if example is None else example, io.BytesIO()
    with _quiet():
        if exporter == "legacy":
            torch.onnx.export(
                network,
                (example,),
                file,  # type: ignore[arg-type] # which the older exporter takes
                dynamo=False,
                opset_version=opset,
                input_names=["image"],
                output_names=["logits"],
                dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}} if free_batch else None,
                training=TrainingMode.TRAINING if network.training else TrainingMode.EVAL,
            )
        else:
            shapes = ({0: "batch"},) if free_batch else None
            program = torch.onnx.export(
                network, (example,), dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False
            )
            assert program is not None
            file.write(program.model_proto.SerializeToString())
    return file.getvalue()


@cache
def exported(name: str, exporter: Exporter = "legacy", opset: int | None = None) -> bytes:
    """Export one of the small networks, once."""
    return export(original(name), exporter, opset)


def written(content: bytes | onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Make a node; names of values have spaces between them."""
    return helper.make_node(
        operator, inputs.split(" "), outputs.split(" "), name=f"{operator} of {outputs}", **attributes
    )


def linear_model(
    before: Sequence[onnx.NodeProto] = (),
    after: Sequence[onnx.NodeProto] = (),
    shape: Sequence[int | str | None] = ("batch", 3, SIDE, SIDE),
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    arrays: dict[str, NDArray[Any]] | None = None,
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """Make a model "image" → before → "pixels" → Relu, Flatten, MatMul → "linear" → after → "logits".

    Without nodes `before`, the pixels are the image; without nodes `after`, the logits are what is linear.
    """
    generator = np.random.default_rng(3)
    weight = generator.normal(size=(3 * SIDE * SIDE, CLASSES)).astype(np.float32)
    nodes = [
        *(before or [node("Identity", "image", "pixels")]),
        *(node("Relu", "pixels", "positive"), node("Flatten", "positive", "flat")),
        node("MatMul", "flat weight", "linear"),
        *(after or [node("Identity", "linear", "logits")]),
    ]
    if outputs is None:
        outputs = [value("logits")]
    constants = [numpy_helper.from_array(array, name) for name, array in {"weight": weight, **(arrays or {})}.items()]
    image = helper.make_tensor_value_info("image", kind, shape)
    graph = helper.make_graph(nodes, "classifier", [image, *inputs], outputs, constants)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def value(
    name: str, kind: int = TensorProto.FLOAT, shape: Sequence[int | str | None] = ("batch", CLASSES)
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def by_onnx_runtime(content: bytes | onnx.ModelProto | Path, batch: Tensor, output: str | None = None) -> Tensor:
    """Run a model with ONNX Runtime alone; what "output" names, or the first output."""
    source = content.SerializeToString() if isinstance(content, onnx.ModelProto) else content
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    (result, *_) = session.run(output and [output], {session.get_inputs()[0].name: batch.numpy()})
    return torch.from_numpy(result)


def is_close(actual: Tensor, expected: Tensor) -> bool:
    """Whether logits are as near to ONNX Runtime's as pathlens promises, each in proportion to itself."""
    return actual.shape == expected.shape and bool(((actual - expected).abs() <= 1e-4 * expected.abs().clamp(1)).all())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Both exporters warn, log and print about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
