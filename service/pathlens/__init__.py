"""pathlens: an image classifier's predictions, with the neurons that carried them and the pixels those neurons read.

Everything that needs torch is imported on first use, so that an application may install the client alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pathlens.version import __version__

if TYPE_CHECKING:
    from pathlens.attribution.linearity import linearity_error
    from pathlens.attribution.pathway_gradient import pathway_gradient
    from pathlens.bundle.store import load_bundle
    from pathlens.classifier.capture import capture
    from pathlens.client import AsyncClient, Client, Connection, RetryPolicy, TransportSecurity
    from pathlens.pathways.confidence_selection import select_by_confidence
    from pathlens.pathways.neuron_intgrad import neuron_intgrad
    from pathlens.pathways.neuron_mct import neuron_mct

_HOMES = {
    "AsyncClient": "pathlens.client",
    "Client": "pathlens.client",
    "Connection": "pathlens.client",
    "RetryPolicy": "pathlens.client",
    "TransportSecurity": "pathlens.client",
    "capture": "pathlens.classifier.capture",
    "linearity_error": "pathlens.attribution.linearity",
    "load_bundle": "pathlens.bundle.store",
    "neuron_intgrad": "pathlens.pathways.neuron_intgrad",
    "neuron_mct": "pathlens.pathways.neuron_mct",
    "pathway_gradient": "pathlens.attribution.pathway_gradient",
    "select_by_confidence": "pathlens.pathways.confidence_selection",
}

__all__ = [
    "AsyncClient",
    "Client",
    "Connection",
    "RetryPolicy",
    "TransportSecurity",
    "__version__",
    "capture",
    "linearity_error",
    "load_bundle",
    "neuron_intgrad",
    "neuron_mct",
    "pathway_gradient",
    "select_by_confidence",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"pathlens.{name} needs {error.name}; install it with: pip install 'pathlens[fit]'", name=error.name
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
