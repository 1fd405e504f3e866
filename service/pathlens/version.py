"""The version of pathlens, read by the package build and reported by the service."""

__version__ = "0.1.0"
