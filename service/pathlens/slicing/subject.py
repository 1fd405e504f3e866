"""A classifier made ready to be cut: what of it is the same for every pathway."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.fusion import fuse
from pathlens.classifier.program import Program, build_graph
from pathlens.slicing.work import count_work


class Subject:
    """A classifier without batch norms, with what a run of one image tells of its values.

    Args:
        classifier: Any captured classifier.

    Attributes:
        program: Its computation, with batch norms and margins in the convolutions.
        module: The same as a graph; every tap is followed by a call of `edit_tap`.
        device: Where it computes: the CPU, because on GPUs, convolutions in TF32 are too coarse to be compared.
        dtype: What it computes in.
        images: The node of the images.
        output: The node of the logits.
        calls: The nodes that depend on the images, or on how many they are, in order.
        work: Floating-point operations of the convolutions and matrix products for one image.
    """

    def __init__(self, classifier: CapturedClassifier) -> None:
        fused = fuse(classifier.to("cpu"))
        self.program: Program = fused.program
        self.module = build_graph(fused.program, fused.weights)
        self.device, self.dtype = fused.device, fused.dtype
        nodes = list(self.module.graph.nodes)
        self.images: fx.Node = nodes[0]
        self.output: fx.Node = nodes[-1].all_input_nodes[0]
        self.calls = _behind(self.images)
        # An image of its own size of batch tells which dimensions count the images.
        one = torch.zeros(1, *self.program.input_shape)
        values = self.run(one, None)
        self.work = count_work(lambda: self.run(one, None))
        self._lone = {node: value.shape if isinstance(value, Tensor) else value for node, value in values.items()}

    def run(self, images: Tensor, edit: Any) -> Mapping[fx.Node, Any]:
        """Return the values of all nodes for a batch of images, with the taps edited."""
        interpreter = fx.Interpreter(self.module, garbage_collect_values=False)
        with torch.no_grad():
            interpreter.run(images.to(self.device, self.dtype), edit)
        return interpreter.env

    def of_one_image(self, node: fx.Node) -> Any:
        """Return the shape of a tensor for a batch of one image, or the value of what is no tensor."""
        return self._lone[node]


_SUBJECTS: WeakKeyDictionary[CapturedClassifier, Subject] = WeakKeyDictionary()


def subject_of(classifier: CapturedClassifier) -> Subject:
    """Make a classifier ready, once for as long as it lives."""
    subject = _SUBJECTS.get(classifier)
    if subject is None:
        subject = _SUBJECTS[classifier] = Subject(classifier)
    return subject


def _behind(images: fx.Node) -> tuple[fx.Node, ...]:
    """Return the calls that depend on the images, in order."""
    reached: dict[fx.Node, None] = {images: None}
    for node in images.graph.nodes:
        # The device of the images is the classifier's own.
        is_call = node.op == "call_function" and node.target is not getattr
        if is_call and any(source in reached for source in node.all_input_nodes):
            reached[node] = None
    return tuple(reached)[1:]
