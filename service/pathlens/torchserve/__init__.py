"""TorchServe as a child process: started, configured, watched and stopped; torch is imported in its workers only."""

from pathlens.torchserve.archive import ArchivedModel, read_archive
from pathlens.torchserve.process import TorchServe
from pathlens.torchserve.settings import TorchServeSettings

__all__ = ["ArchivedModel", "TorchServe", "TorchServeSettings", "read_archive"]
