"""Which part of an ONNX graph is the classifier: one input, one output, and the nodes between them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pathlens.errors import CaptureError

if TYPE_CHECKING:
    import onnx

_SHAPE_ONLY = frozenset({"Identity", "Flatten", "Reshape", "Squeeze"})
_COLOURS = (1, 3)


@dataclass(frozen=True)
class Selection:
    """A classifier within an ONNX model.

    Attributes:
        model: The model with the chosen input and output and the nodes that these need.
        input_name: The images.
        output_name: The logits.
        channels_last: Whether images go in as [batch, height, width, channels].
        fixed_batch: The batch size that the file declares; None if it is free.
        remarks: What a user should know about the choice, one sentence each.
    """

    model: "onnx.ModelProto"
    input_name: str
    output_name: str
    channels_last: bool
    fixed_batch: int | None
    remarks: tuple[str, ...]


def select_classifier(
    model: "onnx.ModelProto", image_shape: Sequence[int], input_name: str | None = None, output_name: str | None = None
) -> Selection:
    """Choose the input of the images and the output of the logits, and leave out what these do not need.

    A Softmax at the very end is taken off, because its input are the logits.

    Args:
        model: As `read_model` returns it; it is not changed.
        image_shape: (channels, height, width) of the images.
        input_name: Must be the one that the output depends on; None takes that one.
        output_name: None takes the only one.

    Raises:
        CaptureError: If the choice is open or impossible, or the input takes other images.
    """
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in constants}
    outputs = {value.name: value for value in model.graph.output}
    remarks = []
    output = _chosen("output", outputs, output_name)
    nodes = _needed(model.graph.node, output)
    used = {output} | {name for node in nodes for name in _read(node)}
    needed = [name for name in inputs if name in used]
    if len(needed) > 1:
        raise CaptureError(
            f"The output {output!r} needs {len(needed)} inputs: {_quoted(needed)}. Export the classifier with the "
            "images as its only input, and all else, such as a training mode, as a constant."
        )
    images = _chosen("input", needed, input_name, inputs)
    if len(outputs) > 1 or output_name is not None:
        remarks.append(f"Logits are the output {output!r} of {_quoted(outputs)}.")
    if len(inputs) > 1 or input_name is not None:
        remarks.append(f"Images are the input {images!r} of {_quoted(inputs)}.")
    channels_last, fixed_batch = _check_input(inputs[images], image_shape)
    if channels_last:
        remarks.append(f"The input {images!r} takes images with the channels last.")
    if fixed_batch is not None:
        remarks.append(f"The batch size {fixed_batch} that the file declares is not needed, and left out.")
    chosen = onnx.ModelProto()
    chosen.CopyFrom(model)
    _keep(chosen.graph.node, nodes)
    _keep(chosen.graph.input, [inputs[images]])
    _keep(chosen.graph.output, [outputs[output]])
    _keep(chosen.graph.initializer, [tensor for tensor in model.graph.initializer if tensor.name in used])
    _keep(chosen.graph.sparse_initializer, [])
    if sparse := [tensor.values.name for tensor in model.graph.sparse_initializer if tensor.values.name in used]:
        raise CaptureError(
            f"The weights {_quoted(sparse)} are stored sparse; export the classifier with dense weights."
        )
    if last := _last_softmax(chosen.graph.node, outputs[output]):
        remarks.append(f"Took off the {last.op_type} at the end: what goes into it are the logits.")
        last.op_type = "Identity"
        del last.attribute[:]
    return Selection(chosen, images, output, channels_last, fixed_batch, tuple(remarks))


def _chosen(kind: str, candidates: Iterable[str], wanted: str | None, everything: Iterable[str] | None = None) -> str:
    names = list(candidates)
    if wanted is not None:
        known = list(names if everything is None else everything)
        if wanted not in known:
            raise CaptureError(f"--{kind}-name {wanted!r} names no {kind} of the file; there are {_quoted(known)}.")
        if wanted not in names:
            raise CaptureError(
                f"The chosen output does not depend on --{kind}-name {wanted!r}, but on {_quoted(names)}."
            )
        return wanted
    if len(names) != 1:
        if not names:
            raise CaptureError(f"The file has no {kind} that the classifier needs; is it a model of images?")
        raise CaptureError(f"The file has {len(names)} {kind}s: {_quoted(names)}. Choose one by --{kind}-name.")
    return names[0]


def _needed(nodes: "Sequence[onnx.NodeProto]", output: str) -> "list[onnx.NodeProto]":
    wanted, kept = {output}, []
    # Nodes are in order of execution, which the checker has seen to.
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(_read(node))
            kept.append(node)
    return kept[::-1]


def _read(node: "onnx.NodeProto") -> list[str]:
    """Return the values that a node reads, also within its branches and loops."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names += [name for inner in graph.node for name in _read(inner)]
            names += [value.name for value in graph.output]
    return names


def _check_input(value: "onnx.ValueInfoProto", image_shape: Sequence[int]) -> tuple[bool, int | None]:
    """Return whether the channels are last, and the batch size that is fixed."""
    import onnx

    kind = value.type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        given = onnx.TensorProto.DataType.Name(kind.elem_type).lower() if kind.elem_type else "no tensor"
        raise CaptureError(
            f"The input {value.name!r} takes {given}; pathlens gives preprocessed images in float32. Export the "
            "classifier in float32, or cut off what comes before by onnx.utils.extract_model."
        )
    if not kind.HasField("shape"):
        return False, None
    sizes = [size.dim_value if size.HasField("dim_value") and size.dim_value > 0 else None for size in kind.shape.dim]
    declared = [str(size or dim.dim_param or "?") for size, dim in zip(sizes, kind.shape.dim, strict=True)]
    if len(sizes) != 4:
        raise CaptureError(
            f"The input {value.name!r} has the shape [{', '.join(declared)}]; expected [batch, channels, height, "
            "width]. If the images are another input, choose it by --input-name."
        )
    channels, height, width = image_shape
    if _fits(sizes[1:], (channels, height, width)):
        return False, sizes[0]
    if sizes[3] in _COLOURS and _fits(sizes[1:], (height, width, channels)):
        return True, sizes[0]
    images = ", ".join(map(str, ("batch", *image_shape)))
    raise CaptureError(
        f"The input {value.name!r} has the shape [{', '.join(declared)}], the images have [{images}]. Give what the "
        f"classifier takes by --size and --colour{_options(sizes[1:])}."
    )


def _options(sizes: Sequence[int | None]) -> str:
    """Return the options for images of these sizes, where they tell."""
    channels, height, width = sizes if sizes[0] in _COLOURS else (sizes[2], *sizes[:2])
    if channels not in _COLOURS or height is None or width is None:
        return ""
    side = str(height) if height == width else f"{height}x{width}"
    return f", here --size {side} --colour {'grey' if channels == 1 else 'rgb'}"


def _fits(declared: Sequence[int | None], given: Sequence[int]) -> bool:
    return all(size in (None, actual) for size, actual in zip(declared, given, strict=True))


def _last_softmax(nodes: "Sequence[onnx.NodeProto]", output: "onnx.ValueInfoProto") -> "onnx.NodeProto | None":
    makers = {name: node for node in nodes for name in node.output}
    dimensions = len(output.type.tensor_type.shape.dim) or 2
    value = output.name
    while (node := makers.get(value)) is not None:
        if node.op_type in ("Softmax", "LogSoftmax"):
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
            # Over the batch, it would be no probability of a class.
            return node if axis % dimensions else None
        if node.op_type not in _SHAPE_ONLY:
            return None
        value = node.input[0]
    return None


def _keep(field: object, values: Iterable[object]) -> None:
    kept = list(values)
    del field[:]  # type: ignore[attr-defined]
    field.extend(kept)  # type: ignore[attr-defined]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
