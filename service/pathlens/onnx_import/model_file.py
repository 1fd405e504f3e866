"""ONNX files: what is in them, checked, before anything of it runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pathlens.errors import CaptureError
from pathlens.onnx_import.messages import first_line, missing_extra

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 13
"""Older files are converted to it."""

LARGEST_GRAPH = 1_000_000
"""Nodes with all calls of functions written out; functions that call functions can stand for any number."""

_NAMES_OF_STANDARD_DOMAIN = ("", "ai.onnx")


def read_model(path: Path) -> "onnx.ModelProto":
    """Read and check a file, all but its external data, and write its functions out.

    Raises:
        CaptureError: If there is no such file, it is no ONNX model or a damaged one, its external data is missing or
            outside its folder, or the extra `onnx` is not installed.
    """
    try:
        import onnx
        from onnx.external_data_helper import uses_external_data
    except ImportError as error:
        raise missing_extra(path) from error
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CaptureError(f"{path} {what}; give the path of an ONNX file.")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except OSError as error:
        raise CaptureError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # protobuf has errors of its own, which are no part of what onnx promises.
        raise CaptureError(
            f"{path} is not an ONNX file, or is truncated: {first_line(error)}. Export or copy it again."
        ) from error
    if not model.ir_version or not model.graph.node:
        raise CaptureError(f"{path} holds no ONNX model with a graph. Is it complete, and the right file?")
    try:
        # Given the path, the checker looks at the external data as well, and reads files of more than 2 GB.
        onnx.checker.check_model(path)
    except Exception as error:  # ValidationError mostly, but the file system may refuse a name that the file gives.
        remedy = "Export it again"
        if any(map(uses_external_data, _tensors(model))):
            remedy += "; external data must be a file in the same folder, moved and copied together with the model"
        raise CaptureError(f"{path} is not a valid ONNX model: {first_line(error)}. {remedy}.") from error
    return _without_functions(model, path)


def standard_opset(model: "onnx.ModelProto") -> int:
    """Return the version of the standard operators that a model uses."""
    return next((entry.version for entry in model.opset_import if entry.domain in _NAMES_OF_STANDARD_DOMAIN), 1)


def with_supported_opset(model: "onnx.ModelProto", path: Path) -> "onnx.ModelProto":
    """Convert a model whose operators are older than `OLDEST_OPSET`; return any other as it is.

    Raises:
        CaptureError: If the converter cannot do it.
    """
    from onnx import version_converter

    opset = standard_opset(model)
    if opset >= OLDEST_OPSET:
        return model
    try:
        converted = type(model)()
        converted.CopyFrom(model)
        converted.ir_version = max(4, model.ir_version)
        return version_converter.convert_version(converted, OLDEST_OPSET)
    except Exception as error:  # The converter raises whatever its C++ code throws.
        cause = first_line(error).rpartition("failed: ")[2]
        raise CaptureError(
            f"{path} has opset {opset} and cannot be converted to opset {OLDEST_OPSET}: {cause}. Export it again with "
            f"an opset from {OLDEST_OPSET} to 21."
        ) from error


def load_weights(model: "onnx.ModelProto", path: Path) -> None:
    """Put the external data into the model, which has been read from `path`.

    Raises:
        CaptureError: If the data is missing, too short or outside the folder of the file.
    """
    import onnx

    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise CaptureError(
            f"The external data of {path} cannot be read: {first_line(error)}. Keep the data file that was exported "
            "with the model, complete, in the same folder."
        ) from error


def _tensors(model: "onnx.ModelProto") -> "Iterator[onnx.TensorProto]":
    """Yield the weights, and the constants that nodes of the graph itself hold."""
    yield from model.graph.initializer
    for node in model.graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _without_functions(model: "onnx.ModelProto", path: Path) -> "onnx.ModelProto":
    if not model.functions:
        return model
    from onnx import inliner

    _check_size(model, path)
    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # The inliner likewise.
        raise CaptureError(
            f"The functions of {path} cannot be written out: {first_line(error)}. Export the model without functions."
        ) from error


def _check_size(model: "onnx.ModelProto", path: Path) -> None:
    bodies = {(function.domain, function.name): function.node for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: "Iterator[onnx.NodeProto] | list[onnx.NodeProto]", callers: frozenset[tuple[str, str]]) -> int:
        total = 0
        for node in nodes:
            function = (node.domain, node.op_type)
            if function in callers:
                raise CaptureError(f"The function {node.op_type} of {path} calls itself, which no valid model does.")
            if function in bodies and function not in sizes:
                sizes[function] = size(list(bodies[function]), callers | {function})
            total += sizes.get(function, 1)
        return total

    nodes = size(list(model.graph.node), frozenset())
    if nodes > LARGEST_GRAPH:
        raise CaptureError(
            f"The functions of {path} stand for {nodes:,} nodes; at most {LARGEST_GRAPH:,} are read. Export the model "
            "without functions."
        )
