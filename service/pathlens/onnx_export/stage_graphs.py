"""The stages of an explanation as ONNX files, which name the classifier they belong to."""

from dataclasses import dataclass

STAMP = "classifier_sha256"
"""Key of the classifier's hash in the metadata of a file."""


@dataclass(frozen=True)
class ServingGraphs:
    """The stages of an explanation as ONNX files.

    Attributes:
        prediction: image → logits.
        generation: image → logits and mask; None without a generator.
        pathway: image, target, mask and, unless zero, replacement → logits of the pathway network and map.
    """

    prediction: bytes
    generation: bytes | None
    pathway: bytes

    def stamped(self, fingerprint: str) -> "ServingGraphs":
        """Return the same graphs stamped with the hash of their classifier."""
        generation = None if self.generation is None else _stamped(self.generation, fingerprint)
        return ServingGraphs(_stamped(self.prediction, fingerprint), generation, _stamped(self.pathway, fingerprint))


def _stamped(graph: bytes, fingerprint: str) -> bytes:
    # What serves the graphs needs this module, but not this package.
    import onnx

    model = onnx.load_model_from_string(graph)
    onnx.helper.set_model_props(model, {STAMP: fingerprint})
    return model.SerializeToString(deterministic=True)
