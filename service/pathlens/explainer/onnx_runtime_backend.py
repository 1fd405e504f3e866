"""ONNX Runtime as what computes, on the CPU."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from pathlens.attribution.pathway_gradient import PathwayRun
from pathlens.classifier.acceleration import accelerate
from pathlens.classifier.captured import CapturedClassifier
from pathlens.errors import BundleError
from pathlens.explainer.backend import BackendName, GenerationRun
from pathlens.explainer.torch_backend import TorchBackend
from pathlens.explainer.transferred_runs import classify_transferred, run_transferred
from pathlens.explanation import Ablation
from pathlens.onnx_export import signature
from pathlens.onnx_export.stage_graphs import STAMP, ServingGraphs
from pathlens.pathways.bank import ClassPathwayBank
from pathlens.pathways.pathway import Pathway, from_flat, mask_shape
from pathlens.slicing.cache import SliceCache

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of inputs or outputs by name, without the batch."""

# Each pass keeps what the taps put out until it has gone back. ONNX Runtime keeps the memory of its largest pass for
# good, and more than so much at a time makes an image no cheaper.
_LARGEST_PASS = 64 * 2**20
# Severities of ONNX Runtime: 4 is "fatal". Errors arrive as exceptions, which are logged with what they belong to.
_LOGGED_SEVERITY = 4


class OnnxRuntimeBackend:
    """Runs the stages of an explanation as ONNX graphs; see `Backend`.

    What the graphs cannot do is left to PyTorch: contributions, and pathways of another granularity or ablation than
    those of the bank. So are stored pathways with slices.

    Args:
        graphs: The stages, stamped with the hash of the classifier.
        classifier: The captured classifier, on the CPU.
        bank: The stored pathways and what stands in for removed neurons.
        slice_bytes: Of all slices of stored pathways together; 0 slices nothing.

    Raises:
        BundleError: If ONNX Runtime is not installed, or the graphs are damaged or belong to another classifier.
    """

    name: BackendName = "onnxruntime"

    def __init__(
        self, graphs: ServingGraphs, classifier: CapturedClassifier, bank: ClassPathwayBank, slice_bytes: int = 0
    ) -> None:
        self._torch = TorchBackend(classifier, bank, None)
        self.slices = SliceCache(accelerate(classifier), bank, slice_bytes)
        self._bank = bank
        self._taps = classifier.taps
        neurons = sum(tap.units for tap in self._taps)
        rows = max(1, _LARGEST_PASS // (neurons * torch.float32.itemsize))
        image = {signature.IMAGE: classifier.input_shape}
        logits = {signature.LOGITS: (classifier.classes,)}
        mask = {signature.MASK: (sum(torch.Size(mask_shape(tap, bank.granularity)).numel() for tap in self._taps),)}
        wanted: dict[str, tuple[int, ...]] = {**image, signature.TARGET: (), **mask}
        if values := bank.replacement.values:
            wanted[signature.REPLACEMENT] = (sum(value[0].numel() for value in values),)
        self._prediction = _Stage("prediction", graphs.prediction, image, logits, classifier, rows)
        self._generation = None
        if graphs.generation is not None:
            self._generation = _Stage("generation", graphs.generation, image, {**logits, **mask}, classifier, rows)
        maps = {signature.MAP: classifier.input_shape}
        self._pathway = _Stage("pathway", graphs.pathway, wanted, {**logits, **maps}, classifier, rows)

    def logits(self, images: Tensor) -> Tensor:
        """Classify: f(x), float32 [B, K]."""
        (logits,) = self._prediction.run([images])
        return logits

    def generate(self, images: Tensor) -> GenerationRun:
        """Classify and generate pathways in one pass."""
        assert self._generation is not None, "the bundle has a generator"  # noqa: S101
        logits, flat = self._generation.run([images])

        def pathway() -> Pathway:
            replacement = self._bank.replacement_of(logits.argmax(1))
            return from_flat(flat, self._taps, self._bank.granularity, replacement)

        return GenerationRun(logits, pathway)

    def pathway_logits(self, images: Tensor, pathway: Pathway) -> Tensor:
        """Classify through pathways alone: f(x; m), float32 [B, K]."""
        # The graph computes the gradient in any case, which takes no less time than PyTorch's forward pass alone.
        return self._torch.pathway_logits(images, pathway)

    def pathway_run(
        self, images: Tensor, target: Tensor, pathway: Pathway, with_contributions: bool = False
    ) -> PathwayRun:
        """Run the pathway network forward and backward."""
        own = self._bank.granularity, self._bank.replacement.ablation
        if with_contributions or (pathway.granularity, pathway.ablation) != own:
            return self._torch.pathway_run(images, target, pathway, with_contributions)
        inputs = [images, target, pathway.flat()]
        if pathway.ablation is not Ablation.ZERO:
            values = pathway.replacement.values
            inputs.append(torch.cat([value.expand(len(images), *value.shape[1:]).flatten(1) for value in values], 1))
        logits, gradient = self._pathway.run(inputs)
        return PathwayRun(logits, gradient, None)

    def transferred_logits(self, images: Tensor, target: Tensor) -> Tensor:
        """Classify through stored pathways alone: f(x; m), float32 [B, K]."""
        return classify_transferred(self, self._bank, images, target)

    def transferred_run(self, images: Tensor, target: Tensor) -> PathwayRun:
        """Run stored pathways forward and backward."""
        return run_transferred(self, self._bank, images, target)


class _Stage:
    """One graph, ready to run; may be run from several threads at once.

    Args:
        name: For error messages.
        graph: An ONNX file.
        inputs: What it must take.
        outputs: What it must return.
        classifier: The classifier that it must belong to.
        rows: Most images in one pass.
    """

    def __init__(
        self, name: str, graph: bytes, inputs: Shapes, outputs: Shapes, classifier: CapturedClassifier, rows: int
    ) -> None:
        self._session = _session(name, graph)
        stamp = self._session.get_modelmeta().custom_metadata_map.get(STAMP)
        if stamp != classifier.fingerprint:
            raise BundleError(f"The graph {name} belongs to classifier {stamp}, not to {classifier.fingerprint}.")
        for found, expected in ((self._session.get_inputs(), inputs), (self._session.get_outputs(), outputs)):
            shapes = {value.name: tuple(value.shape[1:]) for value in found}
            if shapes != expected:
                raise BundleError(
                    f"The graph {name} has {shapes}, this bundle calls for {dict(expected)}; make its graphs again: "
                    "pathlens backend BUNDLE onnxruntime"
                )
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._rows = rows

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run it, in as many passes as it takes.

        Raises:
            MemoryError: If there is no memory for it.
        """
        parts = [self._pass(rows) for rows in zip(*(torch.split(tensor, self._rows) for tensor in inputs), strict=True)]
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]

    def _pass(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        arrays = {name: tensor.numpy() for name, tensor in zip(self._inputs, inputs, strict=True)}
        try:
            return [torch.from_numpy(array) for array in self._session.run(self._outputs, arrays)]
        except Exception as error:
            # ONNX Runtime has no exception of its own for this.
            if "allocate memory" in str(error) or "bad_alloc" in str(error):
                raise MemoryError(str(error)) from error
            raise


def _session(name: str, graph: bytes) -> Any:
    try:
        runtime = import_module("onnxruntime")
    except ImportError as error:
        raise BundleError(
            f"This bundle is served by ONNX Runtime, which cannot be imported ({error}): pip install 'pathlens[serve]' "
            "(or 'pathlens[onnx]'), or let PyTorch serve it: pathlens backend BUNDLE torch"
        ) from error
    options = runtime.SessionOptions()
    options.log_severity_level = _LOGGED_SEVERITY
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Its plans of the memory hold for one size of the batch each; the arena alone is as fast for all sizes.
    options.enable_mem_pattern = False
    # Threads that wait by spinning would take processors from the other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(
            f"ONNX Runtime {runtime.__version__} cannot load the graph {name} ({error}): make the graphs of the bundle "
            "again with `pathlens backend BUNDLE onnxruntime`, or install the version that made them."
        ) from error
