"""TorchServe as a child process: started, configured, watched and stopped; torch is imported in its workers only."""

from pathlens.torchserve.archive import ArchivedModel, read_archive
from pathlens.torchserve.collector import TorchServeCollector
from pathlens.torchserve.process import TorchServe
from pathlens.torchserve.served_models import ServedModels
from pathlens.torchserve.settings import TorchServeSettings
from pathlens.torchserve.stored_archive import StoredArchive

__all__ = [
    "ArchivedModel",
    "ServedModels",
    "StoredArchive",
    "TorchServe",
    "TorchServeCollector",
    "TorchServeSettings",
    "read_archive",
]
