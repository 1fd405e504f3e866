"""A batch in, a batch out: the one thing the handler calls."""

from pathlens.classifier.decoding import DecodingLimits
from pathlens.explainer.explainer import Explainer

__all__ = ["DecodingLimits", "Explainer"]
