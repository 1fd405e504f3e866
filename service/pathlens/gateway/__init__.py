"""The grpc.aio server that applications call; it validates, counts and forwards, and never computes."""

from pathlens.gateway.backend import Backend
from pathlens.gateway.probe import canary
from pathlens.gateway.security import Security
from pathlens.gateway.security_settings import AuthorisationSettings, TlsSettings
from pathlens.gateway.server import Gateway
from pathlens.gateway.settings import GatewaySettings
from pathlens.gateway.torchserve_health import TorchServeHealth

__all__ = [
    "AuthorisationSettings",
    "Backend",
    "Gateway",
    "GatewaySettings",
    "Security",
    "TlsSettings",
    "TorchServeHealth",
    "canary",
]
