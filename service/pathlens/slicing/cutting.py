"""Cutting a pathway network out of its classifier.

In the network of a known pathway, most channels can be left out. A channel is kept if it *varies* with the image and
something *needs* it:

- Forward, from the images on: a removed channel does not vary, and neither does one that is computed from channels that
  do not vary. Every rule of slicing tells this for one kind of call (`pathlens.slicing.rules`).
- Backward, from the logits on: a channel is needed if a channel that is kept is computed from it.

A channel that does not vary is a constant, which is zero only where zeros are put in, and not behind the next bias.
Constants need no rules: the pathway network is run once with its masks, on an example, and what it gives for such a
channel there it gives for every image. They become part of the biases that they meet: a convolution of the constants
alone is what they add to it, at margins one value for each position. So logits and gradients are those of the pathway
network, but for rounding; the gradient of a constant is zero in both.

What no rule knows gets all of its inputs, constants included, and is computed as before. What cannot be cut in this way
is refused, and every slice is compared with the pathway network on one, two and three images.
"""

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.pathways.pathway import Pathway
from pathlens.slicing.analysis import Analysis
from pathlens.slicing.builder import Builder
from pathlens.slicing.example_run import ExampleRun
from pathlens.slicing.network import Network
from pathlens.slicing.not_sliceable import NotSliceable
from pathlens.slicing.slice import Slice
from pathlens.slicing.subject import subject_of
from pathlens.slicing.work import count_work

TOLERANCE = 1e-4
"""Largest allowed difference between the logits of slice and pathway network, times the logit where that exceeds 1."""


def cut(classifier: CapturedClassifier, pathway: Pathway) -> Slice:
    """Cut the network of a pathway out of its classifier.

    Args:
        classifier: Any captured classifier; its batch norms become part of its convolutions first.
        pathway: Of one image or class, of any granularity and ablation, on any device.

    Returns:
        The slice, on the classifier's device and in its precision.

    Raises:
        NotSliceable: If it cannot be cut exactly.
        ValueError: If the pathway is of several images, or of another classifier.
    """
    if len(pathway) != 1:
        raise ValueError(f"a slice has one pathway; {len(pathway)} were given")
    if pathway.taps != classifier.taps:
        raise ValueError("the pathway is of another classifier: its taps are others")
    # Weights that are made in inference mode could never be part of a gradient.
    with torch.inference_mode(False), torch.no_grad():
        subject = subject_of(classifier)
        run = ExampleRun(subject, pathway.to(subject.device))
        analysis = Analysis(run)
        builder = Builder(run, analysis.channels)
        for node, rule in analysis.rules.items():
            live = analysis.live(node)
            if len(live):
                builder.add(node, rule.build(builder, live))
        network = builder.finish(subject.output)
        for rows in ([0], [0, 1], [0, 1, 0]):
            _check(network, run, run.images[rows])
        work = count_work(lambda: network(run.images[:1])) / max(subject.work, 1)
        return Slice(network.to(classifier.device), work, subject.work)


def _check(network: Network, run: ExampleRun, images: Tensor) -> None:
    expected = run.logits(images)
    try:
        logits = network(images)
    except RuntimeError as error:
        raise NotSliceable(f"it cannot be run with {len(images)} images: {error}") from error
    if logits.shape != expected.shape:
        raise NotSliceable(f"its logits of {len(images)} images have shape {list(logits.shape)}")
    difference = float(((logits - expected).abs() / expected.abs().clamp(min=1)).max())
    if not difference <= TOLERANCE:
        raise NotSliceable(f"its logits differ by {difference:.2g} from those of the pathway network")
