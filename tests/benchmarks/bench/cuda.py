"""Rows that a CUDA device has beside those of the CPU: bfloat16, and passes recorded as CUDA graphs."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from benchmarks.bench.in_process import BARE, ONE_CLASS, Explainers, Row, Tell, batches, route_works, time_works
from benchmarks.bench.routes import ROUTES, SLICED
from benchmarks.bench.settings import Settings
from benchmarks.bench.subjects import Subject
from pathlens.attribution.pathway_gradient import PathwayRun, run_pathway
from pathlens.classifier.captured import CapturedClassifier
from pathlens.onnx_export.measures import Measure
from pathlens.pathways.pathway import Pathway
from pathlens.slicing.cutting import cut
from pathlens.slicing.not_sliceable import NotSliceable

GRAPH_MASKED, GRAPH_SLICED = "CUDA graph: masked forward + backward", "CUDA graph: sliced forward + backward"
_WARM_UPS = 3
_MOST_DISTANCE = 0.05
"""Of a map: convolutions round to TF32, and the recorded ones may be others."""

Network = Callable[[Tensor], Tensor]
Replay = Callable[[], tuple[Tensor, Tensor]]


def measure(subject: Subject, settings: Settings, tell: Tell) -> Iterator[list[Row] | str]:
    """Measure bfloat16 and CUDA graphs, in float32 forward passes of the same classifier.

    Args:
        subject: What is explained.
        settings: How; the device is a CUDA device.
        tell: Is told what is measured next.

    Yields:
        The rows of one group after the other.
    """
    device = settings.device
    classifier = subject.classifier.to(device)
    images, target = batches(subject, device)[ONE_CLASS]
    tell("bfloat16")
    half = Explainers(subject, device, "torch", subject.classifier.to(dtype=torch.bfloat16))
    works = route_works(list(ROUTES), half, images, target)
    yield time_works(works, classifier, images, settings, {"backend": "torch bfloat16", "batch": ONE_CLASS})
    tell("CUDA graphs")
    pathway = Explainers(subject, device, "torch").of(SLICED).bank.transfer(target.tolist())
    graphs: dict[tuple[str, str], Replay] = {
        (BARE, GRAPH_MASKED): recorded(lambda leaf: classifier(leaf, pathway), images, target)
    }
    piece = _slice(classifier, pathway[:1])
    if piece is not None:
        graphs[BARE, GRAPH_SLICED] = recorded(piece, images, target)
    yield from _wrong(graphs, run_pathway(classifier, images, target, pathway))
    yield time_works(graphs, classifier, images, settings, {"backend": "torch", "batch": ONE_CLASS})


def recorded(network: Network, images: Tensor, target: Tensor) -> Replay:
    """Record a forward and a backward pass on a batch of fixed size as one CUDA graph.

    Args:
        network: From images to logits [B, K], without a step that waits for the device.
        images: On the device.
        target: The class of each image, int64 [B].

    Returns:
        What copies the images to where the graph reads them, replays it, and returns logits and gradient, which the
        next replay overwrites.
    """
    leaf = images.clone().requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            logits = network(leaf)
            (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf)
        return logits.detach(), gradient

    # A first run allocates and chooses kernels, which a graph cannot; it may not run on the default stream.
    side = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(images.device))
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream(images.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            leaf.copy_(images)
        graph.replay()
        return results

    return replay


def _wrong(graphs: Mapping[tuple[str, str], Replay], expected: PathwayRun) -> Iterator[str]:
    for (_, name), replay in graphs.items():
        _, gradient = replay()
        distance = float(Measure.MAP.distances(gradient, expected.gradient).median())
        if distance > _MOST_DISTANCE:
            yield f"{name}: maps differ by {distance:.2g}, more than {_MOST_DISTANCE:g}"


def _slice(classifier: CapturedClassifier, pathway: Pathway) -> Network | None:
    try:
        return cut(classifier, pathway).network
    except NotSliceable:
        return None
