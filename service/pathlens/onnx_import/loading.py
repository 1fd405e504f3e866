"""From the path of an ONNX file to a module that computes what ONNX Runtime computes."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pathlens.errors import CaptureError
from pathlens.onnx_import.activations import join_activations
from pathlens.onnx_import.fixed_batch import with_free_batch
from pathlens.onnx_import.graph import read_graph
from pathlens.onnx_import.messages import first_line, missing_extra
from pathlens.onnx_import.model_file import (
    OLDEST_OPSET,
    load_weights,
    read_model,
    standard_opset,
    with_supported_opset,
)
from pathlens.onnx_import.network import OnnxNetwork
from pathlens.onnx_import.selection import Selection, select_classifier

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4
"""Largest allowed difference to ONNX Runtime's logits, times the largest logit where that exceeds 1."""

_NEWEST_IR_VERSION = 10
_DYNAMIC_BATCH = "torch.onnx.export(..., dynamo=True, dynamic_shapes=({0: 'batch'},))"


def load_onnx_classifier(
    path: Path, example: Tensor, input_name: str | None = None, output_name: str | None = None
) -> OnnxNetwork:
    """Read a classifier from an ONNX file and prove it equal to ONNX Runtime on an example.

    Args:
        path: The file; external data is searched for in its folder.
        example: Preprocessed images, float32 [B, C, H, W]. Sizes that the file leaves free become theirs.
        input_name: The input of the images, the only one that the logits need; None for that one.
        output_name: Which output gives the logits; None for the only one.

    Returns:
        The classifier, without a Softmax at its end; `remarks` says what was chosen and left out.

    Raises:
        CaptureError: If the file cannot be read, does not suit the example, or computes something else here. The
            message names the value and the remedy.
    """
    selection = select_classifier(read_model(path), example.shape[1:], input_name, output_name)
    # ONNX Runtime gets what is in the file and nothing that is changed below. It finds external data by itself.
    content = _serialised(selection.model)
    model, remarks = with_supported_opset(selection.model, path), selection.remarks
    if model is not selection.model:
        remarks += (f"Converted from opset {standard_opset(selection.model)} to {OLDEST_OPSET}.",)
    load_weights(model, path)
    graph = join_activations(read_graph(model), selection.output_name)
    if selection.fixed_batch is not None:
        graph = with_free_batch(graph, selection.fixed_batch)
    network = OnnxNetwork(graph, selection.input_name, selection.output_name, selection.channels_last, remarks).eval()
    with torch.no_grad():
        _check_batches(network, example, selection)
        _check_equal(network, example, selection, content, path)
    return network


def _check_batches(network: OnnxNetwork, example: Tensor, selection: Selection) -> None:
    """Check that each image has logits of its own, whatever is in the batch beside it."""
    alone = _logits(network, example[:1], selection)
    pair = _logits(network, torch.cat([example[-1:], example[:1]]), selection)
    difference = float((pair[1:] - alone).abs().max())
    if not difference <= _allowed(alone):
        raise CaptureError(
            f"The logits of an image differ by {difference:.2g} with the batch it is in. Export the classifier in "
            f"evaluation mode and with a dynamic batch: {_DYNAMIC_BATCH}."
        )


def _logits(network: OnnxNetwork, images: Tensor, selection: Selection) -> Tensor:
    try:
        logits: Tensor = network(images)
    except CaptureError as error:
        # A graph may be made for one batch size although its input declares none.
        batch = selection.fixed_batch or 1
        if len(images) == batch or not _runs(network, images, batch):
            raise
        raise _fixed(batch) from error
    if logits.ndim == 2 and len(logits) == len(images) and logits.is_floating_point():
        if not bool(logits.isfinite().all()):
            raise CaptureError("The logits are not finite on the example; check the weights and the preprocessing.")
        return logits
    if selection.fixed_batch not in (None, len(images)):
        raise _fixed(selection.fixed_batch)
    remedy = "If they are another output, choose it by --output-name."
    if logits.shape[:1] != images.shape[:1]:
        remedy += f" If a batch size is fixed in the file, export it with a dynamic one: {_DYNAMIC_BATCH}."
    raise CaptureError(
        f"The output {selection.output_name!r} is {str(logits.dtype).removeprefix('torch.')} {list(logits.shape)} for "
        f"a batch of {len(images)}; expected logits, floating [batch, classes]. {remedy}"
    )


def _runs(network: OnnxNetwork, images: Tensor, batch: int) -> bool:
    try:
        network(_different(images, batch))
    except CaptureError:
        return False
    return True


def _fixed(batch: int) -> CaptureError:
    return CaptureError(
        f"The file computes with batches of {batch} only; pathlens needs a free batch size. Export it again with a "
        f"dynamic batch: {_DYNAMIC_BATCH}."
    )


def _different(images: Tensor, batch: int) -> Tensor:
    """Make as many images as the batch has; where there are too few, shifted ones, so that none is there twice."""
    rounds = -(-batch // len(images))
    return torch.cat([images.roll(shift, -1) for shift in range(rounds)])[:batch]


def _check_equal(network: OnnxNetwork, example: Tensor, selection: Selection, content: bytes, path: Path) -> None:
    images = _different(example, selection.fixed_batch or len(example))
    expected = _by_onnx_runtime(images, selection, content, path)
    actual = network(images)
    if expected.shape[:2] != actual.shape or expected.numel() != actual.numel():
        raise CaptureError(
            f"ONNX Runtime computes {list(expected.shape)} from {path}, pathlens {list(actual.shape)}. This is a "
            "defect of pathlens; give the classifier as a .pt2 archive or a Python factory meanwhile."
        )
    expected, allowed = expected.view_as(actual), _allowed(expected)
    difference = float((expected - actual).abs().max())
    if not difference <= allowed:
        raise CaptureError(
            f"The logits of {path} differ from ONNX Runtime's by {difference:.2g} (allowed {allowed:.2g}). Does "
            "the model draw random numbers, compute in less than float32, or subtract large numbers from each other? "
            "Export it in float32 and in evaluation mode."
        )
    if selection.fixed_batch is not None:
        # A free batch is what pathlens has made of the file, so that other batches have to be compared, too.
        one_by_one = torch.cat([network(image[None]) for image in images])
        if not float((expected - one_by_one).abs().max()) <= allowed:
            raise _fixed(selection.fixed_batch)


def _allowed(logits: Tensor) -> float:
    return TOLERANCE * max(1.0, float(logits.abs().max()))


def _serialised(model: "onnx.ModelProto") -> bytes:
    # The version only says which fields a file may have, and ONNX Runtime lags behind ONNX with it.
    model.ir_version = min(model.ir_version, _NEWEST_IR_VERSION)
    content: bytes = model.SerializeToString()
    return content


def _by_onnx_runtime(images: Tensor, selection: Selection, content: bytes, path: Path) -> Tensor:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra(path) from error
    options = onnxruntime.SessionOptions()
    # Errors come as exceptions; warnings about the graph are of no use to who fits.
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.resolve()))
    images = images.permute(0, 2, 3, 1) if selection.channels_last else images
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (logits,) = session.run([selection.output_name], {selection.input_name: images.contiguous().numpy()})
    except Exception as error:  # ONNX Runtime has no common class for what it raises.
        raise CaptureError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run {path}: {first_line(error)}. Export the model for an "
            "opset that it knows, 13 to 21."
        ) from error
    return torch.from_numpy(logits)
