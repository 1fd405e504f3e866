"""Reading a model archive (`.mar`) before Java is asked to."""

import json
import lzma
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from pathlens.errors import BundleError
from pathlens.model_version import ModelVersion

_MANIFEST = "MAR-INF/MANIFEST.json"
# The name becomes a file name, a part of a URL and a value in a comma-separated list.
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
# It is compared number by number, and stands in logs and metrics.
_LONGEST_VERSION = 128


@dataclass(frozen=True)
class ArchivedModel:
    """A model archive and what its manifest says.

    Args:
        name: The name under which TorchServe serves the model.
        version: The version under which TorchServe serves the model.
        archive: Absolute path of the `.mar` file.
    """

    name: str
    version: str
    archive: Path

    @property
    def served_as(self) -> ModelVersion:
        """Name and version in one."""
        return ModelVersion(self.name, self.version)


def read_archive(archive: Path) -> ArchivedModel:
    """Read the manifest of a model archive.

    Args:
        archive: Path of the `.mar` file.

    Returns:
        The model in it.

    Raises:
        BundleError: The file is missing, is not a regular one or a zip file, or its manifest does not describe a model.
    """
    if archive.exists() and not archive.is_file():
        # Opening a FIFO would wait for ever.
        raise _damaged(archive, "is not a regular file")
    if not archive.is_file():
        raise BundleError(
            f"There is no model archive {archive}: make it with `pathlens pack`.",
            reason="ARCHIVE_NOT_FOUND",
            metadata={"archive": archive},
        )
    try:
        with zipfile.ZipFile(archive) as content:
            manifest = json.loads(content.read(_MANIFEST))
        name = manifest["model"]["modelName"]
        version = manifest["model"].get("modelVersion", "1.0")
        handler = manifest["model"]["handler"]
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError) as error:
        # zipfile raises RuntimeError for entries that are encrypted or compressed in a way it does not know.
        raise _damaged(archive, "is not a plain zip file, or is damaged") from error
    except OSError as error:
        raise _damaged(archive, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise _damaged(archive, f"holds a {_MANIFEST} that is not JSON") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(archive, f"holds no {_MANIFEST} with a model's modelName and handler") from error
    if not isinstance(name, str) or not _MODEL_NAME.fullmatch(name):
        raise _damaged(archive, f"has the model name {name!r}; use at most 128 letters, digits, '_', '-' and '.'")
    if not isinstance(version, str) or not isinstance(handler, str) or not handler:
        raise _damaged(archive, f"holds a {_MANIFEST} whose modelVersion or handler is not a text")
    if not 0 < len(version) <= _LONGEST_VERSION:
        raise _damaged(archive, f"has a version of {len(version)} characters; use 1 to {_LONGEST_VERSION}")
    return ArchivedModel(name=name, version=version, archive=archive.absolute())


def _damaged(archive: Path, what: str) -> BundleError:
    return BundleError(
        f"The model archive {archive} {what}: make it anew with `pathlens pack`.", metadata={"archive": archive}
    )
