"""What the commands serve, alone and one beside the other: TorchServe, its supervisor and the gateway."""

from pathlens.serving.gateway_service import GatewayService
from pathlens.serving.service import Service
from pathlens.serving.serving import Report, Serving
from pathlens.serving.torchserve_service import TorchServeService

__all__ = ["GatewayService", "Report", "Service", "Serving", "TorchServeService"]
