"""Everything that an operator chooses, from a file, the environment and the command line, and whether it can work."""

from pathlens.configuration.configuration import Configuration
from pathlens.configuration.loading import load_configuration

__all__ = ["Configuration", "load_configuration"]
