"""Capture of a classifier with `torch.export`: functional, with a dynamic batch and a tap after every activation."""

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.program import Program, encode_graph
from pathlens.classifier.taps import Tap, find_taps
from pathlens.errors import CaptureError

TOLERANCE = 1e-5
"""Largest allowed difference between captured and original logits, times the largest logit where that exceeds 1."""


def capture(
    model: nn.Module | ExportedProgram, example_input: Tensor, taps: str | Sequence[str] = "activations"
) -> CapturedClassifier:
    """Capture a classifier as a graph with named taps.

    Args:
        model: The classifier, or a program already exported with a dynamic batch. It is not changed; a copy is put into
            evaluation mode and frozen.
        example_input: One preprocessed batch, float32 [B, C, H, W].
        taps: "activations" for the output of every activation function, or the names of those to keep.

    Raises:
        CaptureError: If the classifier cannot be captured, has no activation function, does not return finite logits
            [B, K] with K >= 2, or computes something else once captured. The message names the construct.
    """
    example = _check_example(example_input)
    original = copy.deepcopy(model).eval().requires_grad_(False) if isinstance(model, nn.Module) else model.module()
    exported = _export(original, example) if isinstance(model, nn.Module) else model
    _check_input(exported, example)
    with torch.no_grad():
        expected = _check_logits(original(example), len(example))
    functional = _functional_module(exported)
    kept = _choose(find_taps(functional.graph), taps)
    _check_batch_comes_first(functional.graph, kept)
    calls, output, weight_names = encode_graph(functional.graph)
    weights = {name: _attribute(functional, name).detach() for name in weight_names}
    channels, height, width = example.shape[1:]
    program = Program((channels, height, width), expected.shape[1], tuple(calls), output, kept)
    captured = CapturedClassifier(program, weights)
    for batch in (example, example[:1], torch.cat([example, example[:1]])):
        _check_equal(captured, original, batch)
    return captured


def _check_example(example: Tensor) -> Tensor:
    if example.ndim != 4 or not example.is_floating_point() or len(example) == 0:
        raise CaptureError(
            f"example_input is {example.dtype} {list(example.shape)}; expected [batch, channels, height, width]."
        )
    # A batch of one would be taken as a constant by the exporter.
    return example if len(example) > 1 else example.repeat(2, 1, 1, 1)


def _export(model: nn.Module, example: Tensor) -> ExportedProgram:
    try:
        return torch.export.export(model, (example,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False)
    except Exception as error:
        cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CaptureError(
            f"torch.export cannot capture {type(model).__name__} with an input of shape {list(example.shape)}: "
            f"{cause.strip().rstrip('.')}. Remedies: give the size and the colour channels that the classifier takes; "
            "replace Python control flow on tensor values by torch.where; take sizes from the input and not from "
            "constants; keep the batch dimension free."
        ) from error


def _functional_module(exported: ExportedProgram) -> fx.GraphModule:
    # An empty table decomposes nothing but makes the graph functional: in-place activations become plain ones.
    with warnings.catch_warnings():
        # torch's own code uses a deprecated form of its own tree library here.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        module: fx.GraphModule = exported.run_decompositions({}).module(check_guards=False)
    module.graph.eliminate_dead_code()
    return module


def _check_input(exported: ExportedProgram, example: Tensor) -> None:
    inputs = [node for node in exported.graph.nodes if node.name in exported.graph_signature.user_inputs]
    if len(inputs) != 1:
        raise CaptureError(f"The classifier takes {len(inputs)} inputs; expected one batch of images.")
    batch, *sizes = inputs[0].meta["val"].shape
    if isinstance(batch, int):
        raise CaptureError(
            f"The program accepts a batch of {batch} only. Export it again with dynamic_shapes="
            '({0: torch.export.Dim("batch")},).'
        )
    if sizes != list(example.shape[1:]):
        raise CaptureError(
            f"The classifier accepts images of shape {sizes}, the example has {list(example.shape[1:])}; give an "
            "example of the right channels and size."
        )


def _choose(found: tuple[Tap, ...], taps: str | Sequence[str]) -> tuple[Tap, ...]:
    wanted = {taps} if isinstance(taps, str) else set(taps)
    names = [tap.name for tap in found]
    if taps == "activations":
        wanted = set(names)
    if not wanted or not wanted <= set(names):
        there = ", ".join(names) or "none at all"
        raise CaptureError(f"No activation function to tap: asked for {taps!r}, the classifier has {there}.")
    return tuple(tap for tap in found if tap.name in wanted)


def _check_batch_comes_first(graph: fx.Graph, taps: tuple[Tap, ...]) -> None:
    nodes = {node.name: node for node in graph.nodes}
    # Sizes are compared as they are written: comparing symbols would compare their values in the example.
    batch = next(str(node.meta["val"].shape[0]) for node in graph.nodes if node.op == "placeholder")
    for tap in taps:
        shape = nodes[tap.node].meta["val"].shape
        if [str(size) for size in shape[:1]] != [batch] or not all(isinstance(size, int) for size in shape[1:]):
            raise CaptureError(
                f"The activation {tap.name} gives [{', '.join(map(str, shape))}]; expected the batch, {batch}, as the "
                "first dimension and no other. Keep the batch first, such as by batch_first=True, or choose other taps."
            )


def _check_logits(logits: object, batch: int) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise CaptureError(f"The classifier returns {shape}; expected one tensor of logits [batch, classes].")
    if len(logits) != batch:
        raise CaptureError(
            f"A batch of {batch} images gives {len(logits)} rows of logits; the classifier must keep the batch "
            "dimension."
        )
    if logits.shape[1] < 2:
        raise CaptureError(f"The classifier returns {logits.shape[1]} logit per image; expected at least 2 classes.")
    if not bool(logits.isfinite().all()):
        raise CaptureError(
            "The classifier's output is not finite on the example input; check its weights and the preprocessing."
        )
    return logits


def _check_equal(captured: CapturedClassifier, original: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        expected, actual = original(batch).float(), captured(batch)
    difference = float((expected - actual).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise CaptureError(
            f"The captured classifier differs from the original by {difference:.2g} (allowed {allowed:.2g}) on a batch "
            f"of {len(batch)}. Does it draw random numbers, or behave differently in each call?"
        )


def _attribute(module: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    value = getattr(module.get_submodule(owner), attribute)
    if not isinstance(value, Tensor):
        raise CaptureError(f"The classifier holds {name} of type {type(value).__name__}, which cannot be captured.")
    return value
