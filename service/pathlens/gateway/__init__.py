"""The grpc.aio server that applications call; it validates, counts and forwards, and never computes."""

from pathlens.gateway.probe import canary
from pathlens.gateway.server import Gateway
from pathlens.gateway.settings import GatewaySettings

__all__ = ["Gateway", "GatewaySettings", "canary"]
