"""What is asked of pathlens and what it answers, in plain Python and numpy: the vocabulary that every room shares.

The explainer computes these objects, `pathlens.wire` carries them, the client returns them. Nothing here needs torch.
"""

import math
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ImageInput = bytes | NDArray[np.uint8] | NDArray[np.float32]
"""An image as JPEG, PNG or WebP bytes; as uint8 pixels [H, W, 3] (RGB) or [H, W] (grey); or as the classifier's own
preprocessed input, float32 [C, H, W]."""


class PathwaySource(Enum):
    """Where a pathway comes from."""

    TRANSFERRED = "transferred"
    """The stored pathway of the target class, fitted beforehand (arXiv 2309.09887)."""
    GENERATED = "generated"
    """Generated for this image by the bundle's generator (GEN-CNP, arXiv 2309.09887)."""
    NEURON_MCT = "neuron_mct"
    """Selected by marginal contribution to first order (arXiv 2103.16886)."""
    NEURON_INTGRAD = "neuron_intgrad"
    """Selected by the path integral of the gradient, layer by layer (arXiv 2103.16886)."""


class Granularity(Enum):
    """What counts as one neuron."""

    CHANNEL = "channel"
    """A whole feature map."""
    UNIT = "unit"
    """One scalar of one tap."""


class Ablation(Enum):
    """What stands in for a removed neuron."""

    ZERO = "zero"
    """Zero, as in both papers."""
    MEAN = "mean"
    """Its mean over the images that the bundle was fitted on."""
    OPTIMAL = "optimal"
    """A constant for each class and channel, learned with the pathway of the class (arXiv 2409.09951)."""


class Reduction(Enum):
    """How a pathway-gradient map of several colour channels becomes one channel."""

    SIGNED_MAXIMUM = "signed_maximum"
    """The value of greatest magnitude over the colour channels, with its sign (the figures of arXiv 2103.16886)."""
    MAGNITUDE_SUM = "magnitude_sum"
    """The sum of the magnitudes over the colour channels."""
    NONE = "none"
    """All colour channels as they are; heatmap and overlay then use the signed maximum."""


class Output(Enum):
    """What an explanation may contain beside the prediction and the pathway's figures."""

    PATHWAY = "pathway"
    """The bit-packed mask of every tap."""
    MAP = "map"
    """The pathway-gradient map as float32."""
    HEATMAP = "heatmap"
    """The map as a PNG at the size of the image, its longest side reduced to 2,048 pixels."""
    OVERLAY = "overlay"
    """The map drawn over the image, a PNG of the same size."""
    FAITHFULNESS = "faithfulness"
    """The target's confidence in the pathway network, beside that in the whole classifier."""


MAX_TARGETS = 16
"""Most targets of one image: each costs a pass of the pathway network."""

MAX_TOP_NEURONS = 1000
"""Most neurons that one explanation lists."""

MAX_INTEGRATION_STEPS = 100
"""Most points of the integral of `PathwaySource.NEURON_INTGRAD`, for all targets of an image together."""

LINEARITY_RADII = (1e-6, 1e6)
"""Smallest and largest radius of the linearity check; beyond them it would measure the precision of the numbers."""

DEFAULT_OUTPUTS = frozenset({Output.PATHWAY, Output.MAP, Output.FAITHFULNESS})


@dataclass(frozen=True)
class ModelReference:
    """Names a served model. An empty name means the only model served; an empty version, the newest."""

    name: str = ""
    version: str = ""


@dataclass(frozen=True)
class Targets:
    """The classes to explain: the union of the top-k predicted classes, class indices and labels.

    All empty means the predicted class alone.
    """

    top_k: int = 0
    class_indices: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExplanationOptions:
    """Everything about an explanation but the image.

    Attributes:
        targets: The classes to explain.
        source: Where the pathway comes from.
        sparsity: Fraction of neurons removed, in [0, 1); for contribution sources only. None: the bundle's own.
        granularity: None: the bundle's own.
        outputs: What the reply contains.
        reduction: How the map becomes one channel.
        top_neurons: How many of the pathway's neurons to list by contribution.
        predictions: How many of the most probable classes to report.
        integration_steps: Points of the integral of `PathwaySource.NEURON_INTGRAD`, whose cost grows with them.
        linearity_radius: Radius of the L2 ball, in units of the preprocessed input, in which the linearity of the
            pathway network is checked; None for no check.
    """

    targets: Targets = Targets()
    source: PathwaySource = PathwaySource.TRANSFERRED
    sparsity: float | None = None
    granularity: Granularity | None = None
    outputs: frozenset[Output] = DEFAULT_OUTPUTS
    reduction: Reduction = Reduction.SIGNED_MAXIMUM
    top_neurons: int = 0
    predictions: int = 5
    integration_steps: int = 20
    linearity_radius: float | None = None


@dataclass(frozen=True)
class ExplanationRequest:
    """One image and what to say about it.

    Attributes:
        image: The image.
        options: What to explain; None asks for the prediction alone.
        predictions: How many of the most probable classes to report where there are no options.
        deadline: Moment, in seconds since the epoch, after which nobody waits for the answer; None without a limit.
    """

    image: ImageInput
    options: ExplanationOptions | None = ExplanationOptions()
    predictions: int = 5
    deadline: float | None = None

    @property
    def prediction_count(self) -> int:
        """How many of the most probable classes to report."""
        return self.predictions if self.options is None else self.options.predictions


@dataclass(frozen=True)
class Prediction:
    """A class with its probability in [0, 1] and its logit."""

    class_index: int
    label: str
    probability: float
    logit: float


@dataclass(frozen=True, eq=False)
class TapMask:
    """The part of a pathway at one tap.

    Attributes:
        tap: Name of the tap.
        mask: bool [C] for channels, the tap's own shape for units; not to be written to.
    """

    tap: str
    mask: NDArray[np.bool_]

    @cached_property
    def kept(self) -> int:
        """Number of neurons kept at this tap."""
        return int(np.count_nonzero(self.mask))

    def pack(self) -> bytes:
        """Pack the mask in row-major order; the first neuron of a byte is its least significant bit."""
        return self._packed

    @cached_property
    def _packed(self) -> bytes:
        # The masks of a stored pathway are sent again and again.
        return np.packbits(self.mask.reshape(-1), bitorder="little").tobytes()

    @classmethod
    def unpack(cls, tap: str, shape: tuple[int, ...], packed: bytes) -> "TapMask":
        """Undo `pack` for a mask of a shape."""
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=math.prod(shape), bitorder="little")
        return cls(tap, bits.astype(bool).reshape(shape))


@dataclass(frozen=True)
class NeuronContribution:
    """A neuron of the pathway and its first-order contribution to the target's logit in the pathway network."""

    tap: str
    index: tuple[int, ...]
    contribution: float


@dataclass(frozen=True)
class Faithfulness:
    """What the pathway network alone makes of the image.

    Attributes:
        confidence: The target's probability in the whole classifier, p.
        pathway_confidence: The target's probability in the pathway network, q.
        confidence_drop: max(0, p - q) / p, in [0, 1].
        agreement: Whether the pathway network predicts the same class as the classifier.
    """

    confidence: float
    pathway_confidence: float
    confidence_drop: float
    agreement: bool


@dataclass(frozen=True)
class Linearity:
    """How linear the pathway network is around the image (arXiv 2103.16886, section 3.3).

    Attributes:
        radius: Radius of the L2 ball, in units of the preprocessed input.
        points: Random points of the ball at which it was measured.
        relative_error: Root of the summed squares of f(x; m) - f(x₀; m) - g · (x - x₀), over that of
            f(x; m) - f(x₀; m): 0 for a linear network, 1 for a map that says nothing about the change.
    """

    radius: float
    points: int
    relative_error: float


@dataclass(frozen=True)
class Typicality:
    """How typical an explanation is: its percentile ranks, in (0, 1), among those of held-out images of the fit.

    Over images like those, every rank is uniformly distributed. An image among equals gets a rank drawn from theirs,
    always the same one for the same image.

    Attributes:
        sparsity_rank: Of the sparsity; None where all pathways of the source have the same.
        class_pathway_iou_rank: Of the overlap with the stored pathway of the class; None without one, and for that
            pathway itself.
        confidence_drop_rank: Of (p - q) / p, the drop in confidence before a gain is cut off; None without the
            faithfulness check.
        class_images: Held-out images of the predicted class that the explanation is compared with; 0 where there were
            too few, and it is compared with those of all classes.
    """

    sparsity_rank: float | None = None
    class_pathway_iou_rank: float | None = None
    confidence_drop_rank: float | None = None
    class_images: int = 0


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why the classifier sees the target class: the pathway and the map.

    Attributes:
        target: The class that is explained.
        source: Where the pathway came from.
        granularity: What counts as one neuron.
        ablation: What stands in for a removed neuron.
        sparsity: Fraction of neurons that the pathway removes.
        class_pathway_iou: Intersection over union with the stored pathway of the class; None without one.
        pathway: The masks, one per tap; empty unless asked for.
        faithfulness: None unless asked for.
        map: float32 [H, W] or [C, H, W], the gradient of the target's logit in the pathway network with respect to the
            preprocessed input; None unless asked for.
        heatmap_png: Empty unless asked for.
        overlay_png: Empty unless asked for.
        top_neurons: Highest magnitude first; empty unless asked for.
        linearity: None unless asked for.
        typicality: None for other classes than the predicted one, for other sources, sparsities and granularities than
            the fit measured, and where the fit had too few images to hold out.
    """

    target: Prediction
    source: PathwaySource
    granularity: Granularity
    ablation: Ablation
    sparsity: float
    class_pathway_iou: float | None
    pathway: tuple[TapMask, ...] = ()
    faithfulness: Faithfulness | None = None
    map: NDArray[np.float32] | None = None
    heatmap_png: bytes = b""
    overlay_png: bytes = b""
    top_neurons: tuple[NeuronContribution, ...] = ()
    linearity: Linearity | None = None
    typicality: Typicality | None = None


@dataclass(frozen=True)
class ServedModel:
    """The model that answered: name, version and the hash of its bundle."""

    name: str = ""
    version: str = ""
    bundle_sha256: str = ""


Stage = Literal["queue", "decode", "predict", "pathway", "gradient", "encode"]
STAGES: tuple[Stage, ...] = ("queue", "decode", "predict", "pathway", "gradient", "encode")
"""The stages of an answer, in order."""


@dataclass(frozen=True, eq=False)
class ExplanationResult:
    """The answer for one image.

    Attributes:
        predictions: Most probable first.
        explanations: One per target, in the order asked; empty for a prediction alone.
        stage_seconds: Seconds spent in each of `STAGES` that was passed. Items computed together share these times.
        model: Which model answered.
    """

    predictions: tuple[Prediction, ...]
    explanations: tuple[Explanation, ...] = ()
    stage_seconds: dict[str, float] = field(default_factory=dict)
    model: ServedModel = ServedModel()
