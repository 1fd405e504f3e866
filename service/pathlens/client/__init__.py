"""The Python client: numpy in, numpy out, no torch."""

from pathlens.client.client import Client

__all__ = ["Client"]
