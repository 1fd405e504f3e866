"""Private copies of model archives: what was checked is what is served, whatever happens to the files meanwhile."""

import hashlib
import itertools
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pathlens.errors import BundleError, ServerStartError
from pathlens.model_version import ModelVersion
from pathlens.torchserve.archive import ArchivedModel, read_archive
from pathlens.torchserve.family import Guard
from pathlens.torchserve.served_models import check_pins

_CHUNK_BYTES = 1024 * 1024
# After so many a folder stays for another reason, such as a file that another machine has open on a network volume.
_REMOVALS = 10

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stamp:
    """What a look at a file tells about its content without reading it.

    Args:
        inode: Which file it is; a file that was put in its place has another one.
        size: Its length in bytes.
        modified: Nanoseconds since the epoch.
    """

    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Look at a file.

        Args:
            path: The file, or a link to it.

        Raises:
            OSError: It cannot be looked at.
        """
        status = path.stat()
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class StoredArchive:
    """A copy of an archive, checked.

    Args:
        model: What its manifest says, and where the original lies.
        copy: The copy.
        sha256: Hash of the copy, in hexadecimal digits.
        stamp: What the original looked like when it was copied.
    """

    model: ArchivedModel
    copy: Path
    sha256: str
    stamp: Stamp

    @property
    def version(self) -> ModelVersion:
        """Name and version that it is served under."""
        return self.model.served_as


class ArchiveStore:
    """A temporary folder of copies, until `remove` or the end of this process.

    Args:
        pins: SHA-256 that the archive of a model, or of a file name, has to have.

    Raises:
        ServerStartError: No temporary folder can be made.
    """

    def __init__(self, pins: Mapping[str, str]) -> None:
        self._pins = pins
        self._numbers = itertools.count(1)
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="pl-archives-")).absolute()
        except OSError as error:
            raise ServerStartError(
                f"No folder for copies of the model archives can be made ({error.strerror}): set TMPDIR to a writable"
                " folder."
            ) from error
        try:
            self._guard = Guard((self.folder,))
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def take(self, archive: Path) -> StoredArchive:
        """Copy an archive and check the copy.

        Args:
            archive: The original.

        Returns:
            The copy.

        Raises:
            BundleError: The archive cannot be read or copied, changes meanwhile, is none, or is not a pinned one.
        """
        number = next(self._numbers)
        copy = self.folder / f"{number}.mar"
        try:
            stamp, sha256 = _copied(archive, copy)
            model = replace(read_archive(copy), archive=archive.absolute())
            check_pins(model, sha256, self._pins)
            # Never a name twice: TorchServe's log is searched for it.
            return StoredArchive(model, copy.rename(self.folder / f"{number}-{model.name}.mar"), sha256, stamp)
        except BundleError as error:
            # Nobody knows the copy.
            message = error.message.replace(str(copy), str(archive))
            raise BundleError(message, reason=error.reason, metadata={**error.metadata, "archive": archive}) from error
        finally:
            copy.unlink(missing_ok=True)

    def keep(self, archives: Iterable[StoredArchive]) -> None:
        """Remove all other copies, those that were never finished included.

        Args:
            archives: What is still needed.
        """
        needed = {archive.copy for archive in archives}
        for copy in self.folder.iterdir():
            if copy not in needed:
                copy.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder with all copies. May be called while another thread takes an archive, which then fails."""
        # Later copies find no folder; one that begins at this very moment may keep the folder once, not twice.
        for _ in range(_REMOVALS):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                break
        else:
            _logger.warning("%s cannot be removed: remove it by hand, with the copies of archives in it", self.folder)
        self._guard.dismiss()


def _opened(path: str, flags: int) -> int:
    # Else opening a FIFO would wait for somebody to write to it, and nothing could break that off.
    return os.open(path, flags | os.O_NONBLOCK)


def _copied(archive: Path, copy: Path) -> tuple[Stamp, str]:
    """Copy and hash in one go; what is hashed is what was written."""
    digest = hashlib.sha256()
    try:
        before = Stamp.of(archive)
        with open(archive, "rb", opener=_opened) as source, copy.open("wb") as target:
            if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
                raise BundleError(
                    f"The model archive {archive} is not a regular file: put the archive itself there.",
                    metadata={"archive": archive},
                )
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
        after = Stamp.of(archive)
    except OSError as error:
        raise BundleError(
            f"The model archive {archive} cannot be copied to {copy.parent} ({error.strerror}): see that it can be read"
            " and that the temporary folder has room for it.",
            reason="ARCHIVE_NOT_FOUND" if isinstance(error, FileNotFoundError) else "BUNDLE_INVALID",
            metadata={"archive": archive},
        ) from error
    if before != after:
        raise BundleError(
            f"The model archive {archive} changed while it was copied: put archives there under another name, and"
            " rename them when they are whole.",
            metadata={"archive": archive},
        )
    return before, digest.hexdigest()
