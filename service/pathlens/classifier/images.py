"""Images to fit on or to evaluate: a folder, a folder of class folders, or an NPZ file; read one at a time."""

import errno
import hashlib
import math
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pathlens.classifier.decoding import check_pixels, decode_image
from pathlens.classifier.mapped_array import MappedArray
from pathlens.errors import ImagesError, PathlensError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})

_PIECE = 1 << 20
_DAMAGE = (ValueError, OverflowError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ImageSource:
    """A fixed sequence of images, in an order that is the same on every machine.

    However many there are, only the image that is read is in memory: an NPZ file is mapped, a compressed one after it
    has been unpacked into a temporary file that nobody else sees and that ends with the object. Processes that are
    started with the object map the same file. An NPZ file must not be overwritten while it is in use; replacing it does
    no harm.

    Args:
        path: A folder of JPEG, PNG or WebP files, flat or with a folder for each class; or an NPZ file whose array
            `images` is uint8 [N, H, W, 3] or [N, H, W].

    Attributes:
        class_names: Names of the class folders in alphabetical order; empty without such folders.
        reasons: Why images could not be read so far, by position.

    Raises:
        ImagesError: If there are no images, the file is damaged, or the temporary folder has no room to unpack it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.class_names: tuple[str, ...] = ()
        self.reasons: dict[int, str] = {}
        self._files: list[Path] = []
        self._array: MappedArray | None = None
        if path.is_dir():
            self._files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            self.class_names = tuple(sorted({file.parent.name for file in self._files if file.parent != path}))
        else:
            self._array = _map_npz(path)
        if len(self) == 0:
            raise ImagesError(
                f"{path} holds no images; expected files ending in {', '.join(sorted(SUFFIXES))} or an NPZ."
            )

    @property
    def skipped(self) -> list[str]:
        """Names of the images that could not be read so far, each with the reason."""
        names = {position: self._files[position] if self._files else self.name(position) for position in self.reasons}
        return [f"{name}: {self.reasons[position]}" for position, name in names.items()]

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal of what tells these images from others without reading them all.

        The checksum that an NPZ file has of its array; of a folder, the names, sizes and times of its files.
        """
        digest = hashlib.sha256()
        if self._array is not None:
            with zipfile.ZipFile(self._path) as archive:
                member = archive.getinfo("images.npy")
                digest.update(f"{member.CRC} {member.file_size}".encode())
        for file in self._files:
            status, name = file.stat(), file.relative_to(self._path).as_posix()
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def name(self, position: int) -> str:
        """Return what an image is called: its path below the folder, with slashes, or its place in the NPZ file."""
        if self._array is not None:
            return f"images[{position}]"
        return self._files[position].relative_to(self._path).as_posix()

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs; paths as one text, as a million of them would take seconds."""
        return {**self.__dict__, "_files": "\0".join(map(str, self._files))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what `__getstate__` of another process has returned."""
        files = state.pop("_files")
        self.__dict__.update(state, _files=[Path(file) for file in files.split("\0")] if files else [])

    def __len__(self) -> int:
        """Return the number of images, unreadable ones included."""
        return len(self._files) if self._array is None else len(self._array.values)

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (position, RGB pixels uint8 [H, W, 3]); an unreadable image is noted in `skipped` and left out."""
        return self.select(range(len(self)))

    def select(self, positions: range | list[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the images at some positions, as `__iter__` does for all."""
        for position in positions:
            try:
                pixels = self.read(position)
            except (PathlensError, OSError) as error:
                self.reasons[position] = str(error)
            else:
                yield position, pixels

    def read(self, position: int) -> NDArray[np.uint8]:
        """Read one image.

        Returns:
            RGB pixels uint8 [H, W, 3]; writable and contiguous.

        Raises:
            PathlensError: If it cannot be decoded.
            OSError: If its file cannot be read.
        """
        if self._array is None:
            return decode_image(self._files[position].read_bytes())
        # A copy, as the mapped file cannot be written to.
        return check_pixels(np.array(self._array.values[position]))


def _map_npz(path: Path) -> MappedArray:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            member = archive.getinfo("images.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                _check_member(archive, member)
                return _map_array(path, file, _start(file, member), member.file_size)
            return _map_unpacked(path, archive, member)
    except (*_DAMAGE, OSError, KeyError) as error:
        raise ImagesError(f"{path} is neither a folder nor an NPZ file with an array named images: {error}") from error


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    # The end of a member is where its checksum is compared.
    with archive.open(member) as stream:
        while stream.read(_PIECE):
            pass


def _map_unpacked(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> MappedArray:
    try:
        with archive.open(member) as stream, tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(stream, unpacked, _PIECE)
            return _map_array(path, unpacked, 0, member.file_size)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise ImagesError(
            f"{path} is compressed and {tempfile.gettempdir()} has no room to unpack it: {error.strerror}. Set TMPDIR "
            f"to a folder with {member.file_size} bytes free, or save the file with numpy.savez, uncompressed."
        ) from error


def _start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Return where the bytes of an uncompressed member begin: after its local header, a name and extra data."""
    file.seek(member.header_offset + 26)
    lengths: tuple[int, int] = struct.unpack("<HH", file.read(4))
    return member.header_offset + 30 + sum(lengths)


def _map_array(path: Path, file: IO[bytes], start: int, size: int) -> MappedArray:
    """Map the NPY file that lies within another; the mapping outlives the file object."""
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("its elements are pickled objects, which are never loaded")
    if dtype != np.uint8 or len(shape) not in (3, 4):
        raise ImagesError(f"images in {path} is {dtype} {list(shape)}; expected uint8 [N, H, W, 3] or [N, H, W].")
    offset = file.tell()
    if offset + math.prod(shape) > start + size:
        raise ValueError(f"an array of shape {list(shape)} has more elements than the file")
    return MappedArray(file.fileno(), offset, shape, "F" if fortran_order else "C")
