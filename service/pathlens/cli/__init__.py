"""The `pathlens` command."""

from pathlens.cli.main import main

__all__ = ["main"]
