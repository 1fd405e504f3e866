"""Names of the inputs and outputs of the exported graphs."""

from pathlens.explanation import PathwaySource

BATCH = "batch"
"""The first dimension of every input and output."""

IMAGE = "image"
TARGET = "target"
MASK = "mask"
REPLACEMENT = "replacement"

LOGITS = "logits"
TOP_CLASS = "top_class"
MAP = "map"


def mask_output(source: PathwaySource) -> str:
    """Name the output that holds the masks of a source, bool [batch, N], all taps side by side."""
    return f"{source.value}_mask"


def logits_output(source: PathwaySource) -> str:
    """Name the output that holds the logits of the pathway network, float32 [batch, K]."""
    return f"{source.value}_logits"


def map_output(source: PathwaySource) -> str:
    """Name the output that holds the pathway-gradient maps, float32 [batch, C, H, W]."""
    return f"{source.value}_map"


def available_output(source: PathwaySource) -> str:
    """Name the output that tells whether the top class has a stored pathway, bool [batch]."""
    return f"{source.value}_available"
